//! What clients saw, and whether a database that keeps its promises could have answered so.
//!
//! ```text
//!   sessions ──► transactions with times, outcomes, what they wrote and saw ──► check(promise) ──► verdict
//!                a file of JSON lines (docs/formats.md), or a Vec in the simulator
//! ```
//!
//! A checker knows nothing of the database: not its clocks, not its versions. It asks whether *any* course of events
//! explains the answers: an order of the operations on one register ([`linearizable`]), a history without forbidden
//! cycles ([`append`]), sums that stay ([`bank`]), constraints that hold ([`write_skew`]), values that are handed out
//! once ([`unique`], [`sequence`]). What it finds it shows with the transactions concerned, and why one had to come
//! before the other.
//!
//! Three outcomes, never two: a transaction whose answer was lost may have happened, once, at any time after its call.
//! It counts as happened when somebody saw its effect, and as nothing at all until then.
//!
//! All of this crate is pure: no clock, no files, no threads. It does not make load (`flaredb workload` does, and
//! tests/sim), and it does not prove anything: it finds what is wrong with one history.

pub mod append;
pub mod bank;
mod level;
pub mod linearizable;
mod record;
pub mod register;
pub mod sequence;
mod show;
pub mod unique;
mod verdict;
pub mod write_skew;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;

pub use self::{
    level::{Kind, Level, Order, Promise},
    record::{Accounts, FORMAT, Header, History, Malformed, Operation, Outcome, Transaction, Transfer, Workload},
    verdict::{Anomaly, Verdict},
};

/// Judges a history by its workload's checker.
///
/// # Errors
/// The history can't be one: a transaction returned before it was called, or one value was written twice.
pub fn check(history: &History, promise: Promise) -> Result<Verdict, Malformed> {
    let transactions = &history.transactions;
    record::validate(transactions)?;
    let anomalies = match history.header.workload {
        Workload::Append => append::check(transactions)?,
        Workload::Register => register::check(transactions)?,
        Workload::Bank => {
            let accounts = history.header.accounts.ok_or(Malformed::NoAccounts)?;
            bank::check(transactions, accounts)
        }
        Workload::WriteSkew => write_skew::check(transactions),
        Workload::Unique => unique::check(transactions),
        Workload::Sequence => sequence::check(transactions),
    };
    Ok(Verdict::new(transactions, promise, anomalies))
}
