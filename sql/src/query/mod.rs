//! Queries: from a parsed statement to rows, over DataFusion and the regions.
//!
//! ```text
//!   text ── cache: shape ──────────────────────────── hit ─► QueryPlan ── start(reader, values) ─► Rows
//!             │ miss                                            ▲
//!   ast ──► bind ──► LogicalPlan ──► optimise ──► logical plan ─┘ ──► key plan (sqlcore's)
//!                    PostgreSQL's meaning         parameters are placeholders
//! ```
//!
//! One planner for all statements: [`mod@bind`] gives a statement PostgreSQL's meaning, DataFusion optimises and runs it, [`scan`] reads tables
//! region by region, [`lookup`] runs correlated subqueries that are no joins, [`cache`] keeps plans by the statement's shape
//! ([`normalise`]), [`catalog`] answers questions about the database itself, [`explain`] tells what would be read.
//!
//! What it does not do: write (DML statements become queries whose rows feed sqlcore's sinks, see [`bind::dml`]), open or end
//! transactions, talk to clients, decide what a value looks like as text.

pub mod bind;
pub mod cache;
pub mod catalog;
pub mod cluster;
pub mod engine;
pub mod explain;
pub mod failure;
pub mod functions;
pub mod locked;
pub mod lookup;
pub mod normalise;
pub mod parameters;
pub mod plan;
pub mod run;
pub mod scan;
pub mod types;
pub mod values;

pub use bind::{Arbiters, Bound, Change, Conflict, LockedTable, OutputColumn, Returning, RowLocks, Unbound, bind};
pub use cache::{PlanCache, Planned};
pub use engine::{physical_plans, planner_runs};
pub use plan::{QueryPlan, Rows, RunValues};
