//! Clients that try to be confused, and write down what they saw.
//!
//! A session lives on a node, like a gateway's: when the node crashes it is gone in the middle of whatever it
//! did, leaving locks behind, and the outcome of its last operation is unknown.

pub mod append;
pub mod bank;
pub mod guard;
pub mod large;
pub mod past;
pub mod register;
pub mod space;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use rand_chacha::ChaCha8Rng;

use crate::runtime::{Owner, World};

/// Where a session sits.
pub struct Seat {
    /// The run.
    pub world: World,
    /// The life of the node it belongs to.
    pub owner: Owner,
    /// Its own randomness.
    pub rng: ChaCha8Rng,
}

/// What clients do and what must hold, over clients of kind `C`. Faults are none of its business.
pub trait Workload<C>: Send + Sync + 'static {
    /// Writes what must be there before the first session, and waits until everything answers; repeated until it
    /// succeeds.
    fn prepare(self: Arc<Self>, client: C) -> BoxFuture<'static, Result<(), String>>;
    /// Works until [`Workload::stop`].
    fn session(self: Arc<Self>, client: C, seat: Seat) -> BoxFuture<'static, ()>;
    /// A user key where a region may be cut; `None`: leave them whole.
    fn border(&self, _: &mut ChaCha8Rng) -> Option<Bytes> {
        None
    }
    /// Sessions end after what they are doing.
    fn stop(&self);
    /// The verdict, when all is quiet; `client` reads what is left. The outer error: ask again.
    fn judge(self: Arc<Self>, client: C, world: World) -> BoxFuture<'static, Result<Result<(), String>, String>>;
}
