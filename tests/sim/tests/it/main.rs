//! The simulator's own tests: suites of seeds, planted bugs, and the runtime's promises.

#[cfg(feature = "planted-bugs")]
mod planted;
mod runtime;
#[cfg(not(feature = "planted-bugs"))]
mod suite;
mod verify;
