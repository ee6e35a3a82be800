//! Real clients against a cluster of real processes: connect, DDL, typed parameters in text and binary,
//! transactions, COPY, an error's SQLSTATE.

mod pgbench;
mod programs;
mod tokio_postgres;
