//! How a table's rows become keys and values. PURE.
//!
//! ```text
//!   key    keyspace u32 ‖ storage id u32 ‖ index u32 ‖ key column ‖ key column ‖ …     (see key.rs)
//!   value  version u8 ‖ (column id and kind varint ‖ payload)*                          (see row.rs)
//!   secondary indexes                                                                   (see index.rs)
//! ```
//!
//! Keys order as their values do in PostgreSQL, and none is a prefix of another. A value holds the columns that the key does
//! not give back exactly; NULLs are left out, so that ADD COLUMN touches no row.

pub mod index;
pub mod key;
pub mod row;
pub mod table;

pub use index::{Entry, IndexCodec, KeyForm};
pub use table::TableCodec;
