//! The catalog: which tables there are.

pub mod descriptor;
pub mod snapshot;

pub use descriptor::{ColumnDescriptor, SchemaDescriptor, Table, TableDescriptor};
pub use snapshot::CatalogSnapshot;
