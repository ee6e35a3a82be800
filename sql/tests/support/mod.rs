//! A gateway over a local kv layer.

#[allow(dead_code)] // Not every test has a use for it.
pub mod random;

use std::sync::Arc;

use bytes::Bytes;
use sql::{Gateway, GatewayConfig, Session, Startup, query::scan::store::RowScan};

/// A local kv layer with region borders at the first tables.
pub fn local() -> kv::local::Local {
    local_with(kv::ClientConfig::default())
}

/// The same, whose transactions leave with the stores whatever they write.
#[allow(dead_code)] // Not every test has a use for it.
pub fn spilling() -> kv::local::Local {
    local_with(kv::ClientConfig { spill_bytes: 0, ..kv::ClientConfig::default() })
}

fn local_with(config: kv::ClientConfig) -> kv::local::Local {
    let borders: Vec<Bytes> = [100, 101, 102].map(|id| proto::keyspace::table_prefix(1, id)).into();
    kv::local::Local::start_with(&borders, Some(Arc::new(RowScan::default())), config)
}

/// A gateway that has started.
pub async fn gateway(local: &kv::local::Local) -> Arc<Gateway> {
    planted_gateway(local, sql::planted::Plant::default()).await
}

/// A gateway with a bug.
pub async fn planted_gateway(local: &kv::local::Local, plant: sql::planted::Plant) -> Arc<Gateway> {
    let config = GatewayConfig {
        client: local.client.clone(),
        pd: local.pd.clone(),
        clock: local.clock.clone(),
        spawn: local.spawn.clone(),
    };
    let gateway = Gateway::with_plant(config, plant);
    gateway.start().await.expect("the gateway starts");
    gateway
}

/// A session of user and database `postgres`.
pub fn connect(gateway: &Arc<Gateway>) -> Session {
    let startup = Startup { user: "postgres".into(), database: "postgres".into(), ..Startup::default() };
    let mut session = gateway.connect(startup).expect("the session is let in");
    session.take_parameter_changes();
    session
}
