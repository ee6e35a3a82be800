//! Judges of what clients saw. Each is shown to fail on histories made wrong by hand.

pub mod cleared;
pub mod counter;
pub mod ledger;
pub mod linearizable;
pub mod referee;
pub mod supervisor;
