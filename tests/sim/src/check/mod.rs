//! Judges of what clients saw, besides those of the crate `history`. Each is shown to fail on histories made wrong by hand.

pub mod cleared;
pub mod counter;
pub mod ledger;
pub mod referee;
pub mod supervisor;
