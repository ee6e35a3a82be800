//! One thread, one seed, one clock: everything that happens, happens because an event was popped here.
//!
//! ```text
//!            ┌────────────── World::run ───────────────┐
//!  events ──►│ pop the earliest (time, tie, sequence)  │──► its owner paused? later.  crashed since? dropped.
//!     ▲      │ fire it                                 │
//!     │      │ poll ready tasks, in a seeded order,    │
//!     │      │ until none is ready                     │
//!     │      └─────────────────────────────────────────┘
//!     └── sleeps, messages, disk completions, faults (all of them events)
//! ```
//!
//! The executor is ours, not tokio's with paused time: ready tasks run in a seeded order instead of first
//! in, first out, a panic of a task fails the seed with its message, and tokio's `test-util` feature
//! stays out of the binaries of a workspace build. Code that runs here may use `tokio::sync` and futures, and
//! nothing of tokio that needs a runtime (tidy bans it there).
//!
//! What is fired is hashed into a trace; a seed that runs twice must give one hash.

mod clock;
mod executor;
mod world;

pub use clock::{NodeClock, NodeSpawn};
pub use world::{NodeIndex, Owner, World};
