//! What transactions do. A load writes down before it is sent what would be written, and what was seen when it was seen.

mod append;
mod bank;
mod register;
mod sequence;
mod unique;
mod write_skew;

use async_trait::async_trait;
use history::{Accounts, Workload};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::session::Attempt;

/// Of so many transactions one locks its rows in the order of its wish, the others in the order of keys: deadlocks are part of the
/// load, but PostgreSQL takes a second over each.
const DISORDERLY: u32 = 100;

/// One of the workloads.
#[async_trait]
pub(super) trait Load: Send + Sync {
    /// Statements that make its tables anew.
    fn tables(&self) -> Vec<String>;

    /// Statements that cut its tables into regions, for FlareDB alone.
    fn borders(&self) -> Vec<String> {
        Vec::new()
    }

    /// What a bank starts with.
    fn accounts(&self) -> Option<Accounts> {
        None
    }

    /// One transaction.
    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error>;

    /// Sees what is there when all have ended.
    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error>;
}

/// The load of a workload.
pub(super) fn load(workload: Workload) -> Box<dyn Load> {
    match workload {
        Workload::Append => Box::new(append::Append::default()),
        Workload::Bank => Box::new(bank::Bank::default()),
        Workload::Register => Box::new(register::Register::default()),
        Workload::Sequence => Box::new(sequence::Sequence),
        Workload::Unique => Box::new(unique::Unique::default()),
        Workload::WriteSkew => Box::new(write_skew::WriteSkew),
    }
}
