//! Lists to which transactions append, after Elle (Kingsbury and Alvaro, VLDB 2020).
//!
//! A list shows how it came about: whoever reads `[1 2 3]` has seen that 1 came before 2 before 3, and no two reads may
//! disagree. From the longest read of each key follow, for all transactions that happened,
//!
//! ```text
//!   ww   the next value in the list is the other's        wr   the last value I saw is the other's
//!   rw   the first value I did not see is the other's     and the order of sessions and of real time
//! ```
//!
//! and what of that goes round in a circle can't have happened one after the other. Which circles are forbidden depends
//! on the level ([`crate::Promise`]); they are looked for from the worst kind to the mildest (`search`).
//!
//! A transaction of unknown outcome is one of those that happened when somebody who happened saw a value of it. A value
//! that was acknowledged and that nobody saw stands behind all that was seen.

mod graph;
mod search;
mod versions;

use crate::{Anomaly, Malformed, Transaction};

/// All that is wrong, at any level. Cycles that share transactions are told once, by the worst of them.
///
/// # Errors
/// One value was appended twice to one key.
pub fn check(transactions: &[Transaction]) -> Result<Vec<Anomaly>, Malformed> {
    let versions = versions::Versions::infer(transactions)?;
    let mut anomalies = versions.anomalies();
    let graph = graph::Graph::build(&versions);
    anomalies.extend(search::cycles(&graph));
    Ok(anomalies)
}
