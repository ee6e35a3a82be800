//! What a query reads through.

use std::sync::Arc;

/// The transactions a statement reads through, by the storage id of the table. Cheap to clone.
///
/// A table that this very transaction created, truncated or rebuilt is filled outside of the transaction's buffer,
/// under a storage id that nobody else knows yet; it is read at a later snapshot than everything else.
#[derive(Clone)]
pub struct Reader {
    main: kv::Txn,
    unpublished: Option<(Arc<[u32]>, kv::Txn)>,
}

impl Reader {
    /// Reads everything through `main`.
    pub fn new(main: kv::Txn) -> Self {
        Reader { main, unpublished: None }
    }
    /// Reads the tables with these storage ids through `txn`.
    pub fn with_unpublished(mut self, storage_ids: Arc<[u32]>, txn: kv::Txn) -> Self {
        self.unpublished = Some((storage_ids, txn));
        self
    }
    /// The transaction through which a table's rows are read.
    pub fn txn(&self, storage_id: u32) -> &kv::Txn {
        match &self.unpublished {
            Some((ids, txn)) if ids.contains(&storage_id) => txn,
            _ => &self.main,
        }
    }
    /// The table with this storage id is one that nobody else knows yet.
    pub fn is_unpublished(&self, storage_id: u32) -> bool {
        self.unpublished.as_ref().is_some_and(|(ids, _)| ids.contains(&storage_id))
    }
    /// The same transactions, published tables at a fresh snapshot.
    pub fn at_fresh_snapshot(&self) -> Self {
        Reader { main: self.main.at_fresh_snapshot(), unpublished: self.unpublished.clone() }
    }
    /// For what a statement reads that writes meanwhile: it sees what was written before now, once [`Reader::detach`] was called.
    pub fn as_statement(&self) -> Self {
        let unpublished = self.unpublished.as_ref().map(|(ids, txn)| (Arc::clone(ids), txn.as_statement()));
        Reader { main: self.main.as_statement(), unpublished }
    }
    /// What is written through other handles from now on is not seen here.
    pub async fn detach(&self) -> Result<(), kv::Error> {
        self.main.detach().await?;
        match &self.unpublished {
            Some((_, txn)) => txn.detach().await,
            None => Ok(()),
        }
    }
    /// The transaction all published tables are read through.
    pub fn main(&self) -> &kv::Txn {
        &self.main
    }
}
