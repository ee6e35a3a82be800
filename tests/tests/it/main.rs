//! One binary for all integration tests: linking is the slow part.

mod drivers;
mod gc;
#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
mod large;
mod membership;
mod metrics;
mod past;
#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
mod placement;
#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
mod public_kv;
mod recovery;
mod refusals;
mod regions;
mod schedules;
#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
mod sessions;
mod slt;
#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
mod survival;
mod tidy;
mod verify;
mod workload;
