//! Filling a storage id that nobody reads yet: rows are committed in batches, several at a time.

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kv::{Client, CommitOptions, Floor};

use super::Target;
use crate::{
    codec::Entry,
    error::{SqlError, SqlResult},
    types::Datum,
};

/// Bytes of a batch: far below what a proposal takes, and enough to make its fixed costs small.
const BATCH_BYTES: usize = 512 << 10;
/// Rows of a batch at most.
const BATCH_ROWS: usize = 4000;
/// Batches on their way at a time: one is applied, one is synced, one is sent.
const BATCHES_IN_FLIGHT: usize = 3;

/// Writes rows to a storage id that only its transaction knows. What it has written stays when it fails; the
/// storage id is then garbage.
pub struct BulkWriter {
    client: Client,
    target: Target,
    /// Key, value, and whether nobody else may have the key.
    batch: Vec<(Bytes, Bytes, bool)>,
    bytes: usize,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<(), kv::Error>>>,
}

impl BulkWriter {
    /// Into the storage id of `target`.
    pub fn new(client: Client, target: Target) -> Self {
        BulkWriter { client, target, batch: Vec::new(), bytes: 0, in_flight: FuturesUnordered::new() }
    }
    /// Adds a row, which has this key and this value. 23505 for a key that came before, maybe some rows late.
    pub async fn push(&mut self, key: Bytes, value: Bytes, row: &[Datum]) -> SqlResult<()> {
        self.push_entries(&key, row)?;
        let unique = self.target.table.primary_key.is_some();
        self.add(key, value, unique);
        self.send_full().await
    }
    /// Adds a row's entries alone.
    pub async fn push_index(&mut self, key: &[u8], row: &[Datum]) -> SqlResult<()> {
        self.push_entries(key, row)?;
        self.send_full().await
    }
    fn push_entries(&mut self, key: &[u8], row: &[Datum]) -> SqlResult<()> {
        let entries = self.target.indexes.iter().map(|index| index.entry(row, key));
        for Entry { key, value, unique } in entries.collect::<SqlResult<Vec<_>>>()? {
            self.add(key, value, unique);
        }
        Ok(())
    }
    fn add(&mut self, key: Bytes, value: Bytes, unique: bool) {
        self.bytes += key.len() + value.len();
        self.batch.push((key, value, unique));
    }
    async fn send_full(&mut self) -> SqlResult<()> {
        if self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_ROWS {
            self.send().await?;
        }
        Ok(())
    }
    /// Writes what is left and waits for all of it.
    pub async fn finish(&mut self) -> SqlResult<()> {
        self.send().await?;
        while let Some(written) = self.in_flight.next().await {
            self.check(written)?;
        }
        Ok(())
    }
    async fn send(&mut self) -> SqlResult<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        while self.in_flight.len() >= BATCHES_IN_FLIGHT {
            if let Some(written) = self.in_flight.next().await {
                self.check(written)?;
            }
        }
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let client = self.client.clone();
        self.in_flight.push(Box::pin(async move {
            let txn = client.begin().await?;
            for (key, value, unique) in batch {
                if unique {
                    txn.insert(key, value)?;
                } else {
                    txn.put(key, value)?;
                }
            }
            txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await.map(|_| ())
        }));
        Ok(())
    }
    /// Nobody else writes here: a conflict is a key of another batch of ours.
    fn check(&self, written: Result<(), kv::Error>) -> SqlResult<()> {
        match written {
            Ok(()) => Ok(()),
            Err(kv::Error::AlreadyExists { key } | kv::Error::Conflict { key }) => Err(self.target.duplicate_key(&key)),
            Err(kv::Error::CommitUnknown(why)) => Err(SqlError::unavailable(why)),
            Err(error) => Err(error.into()),
        }
    }
}
