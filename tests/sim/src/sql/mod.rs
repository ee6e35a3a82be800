//! SQL above the simulated nodes: a gateway in each life of a node, and sessions that speak to it in SQL.
//!
//! ```text
//!   workloads ── SQL text, prepared statements ──► Connection ──► sql::Session ──► key plan ──► kv::Client of the node
//!                                                                    │
//!                               Gateways: one sql::Gateway a life, on the node's clock and tasks, gone with a crash
//! ```
//!
//! What runs here are key plans, transactions around them, the catalog, its leases and fences, and schema changes. A
//! workload's statement that has no key plan fails its seed: DataFusion's operators start tasks on tokio's runtime,
//! which is not here, and hash with random keys; so a run of one would not repeat. The wire is not here either
//! (`server`'s tests have it): a [`Connection`] calls the session as `server` does after it has taken a message apart.

mod accounts;
mod advisory;
mod connection;
mod family;
mod indexed;
mod registers;
mod schema;
mod seats;
mod sessions;

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use proto::keyspace::{self, FIRST_USER_TABLE, SQL_KEYSPACE};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use sql::{Gateway, GatewayConfig};

pub use advisory::AdvisoryLocks;
pub use connection::{Answer, Connection, SqlClient};
pub use family::Family;
pub use indexed::{Indexed, long_memory};
pub use schema::Schema;
pub use seats::Seats;
pub use sessions::{Deeds, Sessions};

use crate::{
    cluster::nodes::{Floor, Tenant},
    runtime::NodeSpawn,
};

/// Pause between two attempts of a gateway to start.
const START_AGAIN: Duration = Duration::from_millis(200);
/// Half of the lives have a client that gives up this soon: then faults outlast commits, whose outcome nobody knows.
const IMPATIENT: Duration = Duration::from_millis(800);
/// And then asks no longer than this.
const IMPATIENT_GRACE: Duration = Duration::from_millis(300);

/// Tables that a run makes one after the other, and a few more: their ids are the catalog's to give.
const TABLE_IDS: std::ops::Range<u32> = FIRST_USER_TABLE..FIRST_USER_TABLE + 24;
/// Rows around which regions are cut.
const ROWS: std::ops::Range<i64> = 0..64;

/// Where a region may be cut: at a row of some table whose key is a bigint.
fn border(rng: &mut ChaCha8Rng) -> Bytes {
    let mut key = BytesMut::from(&keyspace::index_prefix(SQL_KEYSPACE, rng.random_range(TABLE_IDS), 0)[..]);
    // As sql::codec orders integers: the sign's bit turned over.
    key.put_i64(rng.random_range(ROWS) ^ i64::MIN);
    key.freeze()
}

/// A gateway in every life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateways {
    /// Half of the lives have a client that gives up soon.
    Mixed,
    /// All wait as long as they do by default.
    Patient,
}

impl Tenant for Gateways {
    type Client = SqlClient;

    fn client_config(&self, rng: &mut dyn RngCore) -> kv::ClientConfig {
        let patient = kv::ClientConfig::default();
        match *self == Gateways::Mixed && rng.random_bool(0.5) {
            true => kv::ClientConfig { operation_timeout: IMPATIENT, outcome_grace: IMPATIENT_GRACE, ..patient },
            false => patient,
        }
    }

    fn move_in(&self, floor: Floor) -> BoxFuture<'static, Result<SqlClient, String>> {
        Box::pin(async move {
            let Floor { node, world, owner, clock, bug } = floor;
            let config = GatewayConfig {
                client: node.client(),
                pd: Arc::new(node.pd_client()),
                clock: Arc::new(clock),
                spawn: Arc::new(NodeSpawn { world: world.clone(), owner }),
            };
            let gateway = Gateway::with_plant(config, bug.of_sql());
            while let Err(error) = gateway.start().await {
                tracing::debug!(%error, "a gateway waits for the catalog");
                world.sleep(owner, START_AGAIN).await;
            }
            node.serve_gateway(gateway.clone());
            world.count("gateways started", 1);
            Ok(SqlClient::new(gateway, node.client(), world))
        })
    }
}
