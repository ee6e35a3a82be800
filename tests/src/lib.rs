//! Tests that need more than one crate: the rules of the house, and real processes.
//!
//! ```text
//! tests/it/tidy/   the rules of the house: sizes, arrows between crates, banned calls and words
//! tests/it/…       a few clusters of real `flaredb` processes: kill -9, pause, restart; real clients
//! src/source       what tidy reads: the tree's files, with comments, strings and inline tests told apart
//! src/cluster      starts, kills and asks real processes
//! src/postgres     a real PostgreSQL, the oracle of tests/slt
//! src/power        takes away what a killed process had not synced
//! ```
//!
//! Nothing here sleeps for a time that should be long enough: [`wait::until`] asks again and again until a
//! condition holds, and fails with what it saw last when its deadline passes.
//!
//! What it does not do: faults that real processes cannot show on demand (reordered messages, torn writes, a
//! lease that runs out in between). Those are the simulator's, `tests/sim`.

pub mod cluster;
pub mod ports;
pub mod postgres;
pub mod power;
pub mod source;
pub mod wait;
