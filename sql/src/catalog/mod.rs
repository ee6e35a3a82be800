//! The catalog: which tables there are, in system tables, and this gateway's copy of it under a lease.
//!
//! ```text
//!   DDL transaction ── rows of the system tables (store.rs) ── commit ── PD: publish the new version
//!                                                                          │
//!   every gateway:  lease.rs loads it, dooms or awaits transactions (fence.rs), acknowledges
//!                                                                          │
//!   the DDL is done when every live gateway has acknowledged, or its lease has run out
//! ```
//!
//! A [`CatalogSnapshot`] never changes; statements are planned against one, and a plan is good as long as its version is the
//! current one. Not here: schemas other than `public`, views.

pub mod descriptor;
pub mod fence;
pub mod foreign_key;
pub mod garbage;
pub mod lease;
pub mod record;
pub mod sequence;
pub mod snapshot;
pub mod store;

pub use descriptor::{ColumnDescriptor, Identity, Table, TableDescriptor};
pub use fence::Fence;
pub use foreign_key::ForeignKeyDescriptor;
pub use lease::LeasedCatalog;
pub use sequence::{Sequence, SequenceDescriptor};
pub use snapshot::CatalogSnapshot;
