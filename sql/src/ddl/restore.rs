//! ROLLBACK TO for the schema, and for tables that only their transaction knows.
//!
//! A savepoint keeps what the transaction had changed of the schema until then, and ROLLBACK TO takes that up again. Rows of tables that others
//! know are in the transaction's buffer, which goes back by itself. Rows of a table that the transaction has created, truncated or rebuilt are
//! committed as they come, under a storage id that nobody else knows; so a savepoint keeps a snapshot, too:
//!
//! ```text
//!   SAVEPOINT    snapshot S of storage 7       ROLLBACK TO    not written since: the table stays at 7
//!                                                             otherwise: what S sees of 7 is copied to 8, the table moves to 8
//! ```
//!
//! Nothing is taken back in place: a write that was on its way when its statement failed may come late, and comes to 7, of which the table knows
//! nothing any more. What was made since the savepoint is garbage, and deleted as such (`crate::garbage`); what a savepoint may
//! still need stays until the transaction ends.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use kv::{CommitOptions, Floor, ScanOptions, Txn};
use proto::keyspace::{SQL_KEYSPACE, index_prefix, split_prefix};

use super::Pending;
use crate::{
    catalog::{garbage, store},
    error::{SqlError, SqlResult},
    gateway::Gateway,
};

/// A storage id whose table has moved, and where it is now.
pub type Move = (u32, u32);

/// What changes of the schema were at a savepoint.
#[derive(Clone, Default)]
pub struct Kept {
    /// What the transaction had changed.
    pub pending: Option<Arc<Pending>>,
    /// Sees what had been written to tables that only the transaction knows, if there were some.
    pub snapshot: Option<Txn>,
    /// How many moves the transaction had made.
    pub moves: usize,
}

impl Kept {
    /// As it is now. `last` is the savepoint before, if there is one.
    pub async fn now(
        gateway: &Gateway,
        pending: Option<&Arc<Pending>>,
        moves: usize,
        last: Option<&Kept>,
    ) -> SqlResult<Self> {
        let Some(pending) = pending else { return Ok(Kept { moves, ..Kept::default() }) };
        if let Some(last) = last.filter(|last| last.pending.as_ref().is_some_and(|known| Arc::ptr_eq(known, pending))) {
            return Ok(last.clone());
        }
        let snapshot = match pending.unpublished.is_empty() {
            true => None,
            false => Some(gateway.client().begin().await?),
        };
        Ok(Kept { pending: Some(Arc::clone(pending)), snapshot, moves })
    }

    /// What the transaction, which has come to `now`, goes back to, and the tables it moves for that. Nothing else has changed yet.
    pub async fn restore(
        &self,
        gateway: &Arc<Gateway>,
        now: Option<&Pending>,
    ) -> SqlResult<(Option<Pending>, Vec<Move>)> {
        let (Some(kept), Some(now)) = (&self.pending, now) else { return Ok((None, Vec::new())) };
        let mut restored = Pending::clone(kept);
        restored.fills = now.fills.clone();
        let mut moves = Vec::new();
        for from in kept.filled_since(now) {
            let to = store::allocate_ids(gateway.client(), 1).await?;
            garbage::note(gateway.client(), gateway.id(), garbage::Garbage::Storage(to)).await?;
            moves.push((from, to));
            if let Some(snapshot) = &self.snapshot
                && let Err(error) = copy(gateway, snapshot, (from, to)).await
            {
                gateway.collect(moves.into_iter().map(|(_, to)| to).collect());
                return Err(error);
            }
            restored.move_storage(from, to);
        }
        Ok((Some(restored), moves))
    }
}

/// The key under another storage id.
pub fn moved(key: &[u8], (from, to): Move) -> Option<Bytes> {
    let (keyspace, storage_id, index, rest) = split_prefix(key)?;
    if (keyspace, storage_id) != (SQL_KEYSPACE, from) {
        return None;
    }
    let mut moved = BytesMut::from(&index_prefix(SQL_KEYSPACE, to, index)[..]);
    moved.extend_from_slice(rest);
    Some(moved.freeze())
}

/// Copies rows and entries as a snapshot sees them, page by page.
async fn copy(gateway: &Gateway, snapshot: &Txn, way: Move) -> SqlResult<()> {
    let mut scan = snapshot.scan(ScanOptions { range: store::rows_of(way.0), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        if page.rows.is_empty() {
            continue;
        }
        let txn = gateway.client().begin().await?;
        for (key, value) in page.rows {
            let key = moved(&key, way).ok_or_else(|| SqlError::internal("a scan gave a key of another table"))?;
            txn.put(key, value)?;
        }
        txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await?;
    }
    Ok(())
}

impl Pending {
    /// Something is about to be written to a storage id that only this transaction knows.
    pub fn fill(&mut self, storage_id: u32) {
        *self.fills.entry(storage_id).or_default() += 1;
    }

    /// Storage ids known only to this transaction that were written to until `later`.
    fn filled_since(&self, later: &Pending) -> Vec<u32> {
        let filled = |id: &u32| self.fills.get(id) != later.fills.get(id);
        self.unpublished.iter().copied().filter(filled).collect()
    }

    fn move_storage(&mut self, from: u32, to: u32) {
        let table = self.catalog.tables().find(|table| table.storage_id == from);
        if let Some(mut table) = table.map(|table| (**table).clone()) {
            table.storage_id = to;
            self.replace_storage(from, Arc::new(table));
        }
    }

    /// Storage ids, and indexes of storage ids that others know, of which nobody knows when the transaction goes back to `kept`.
    pub fn made_since(&self, kept: Option<&Pending>) -> (Vec<u32>, Vec<(u32, u32)>) {
        let all = |pending: &Pending| -> BTreeSet<u32> {
            pending.unpublished.iter().chain(&pending.discarded).copied().collect()
        };
        let (storage, indexes) = kept.map(|kept| (all(kept), kept.unpublished_indexes.clone())).unwrap_or_default();
        let index = |index: &(u32, u32)| !indexes.contains(index);
        (
            all(self).difference(&storage).copied().collect(),
            self.unpublished_indexes.iter().copied().filter(index).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{CatalogSnapshot, TableDescriptor};

    fn pending(storage_ids: &[u32]) -> Pending {
        let mut pending = Pending::new(&CatalogSnapshot::new(1, []));
        for id in storage_ids {
            let table = TableDescriptor::new(10 * id, format!("t{id}"), Vec::new(), Vec::new());
            pending.create(Arc::new(TableDescriptor { storage_id: *id, ..table }));
        }
        pending
    }

    #[test]
    fn only_what_was_written_since_moves() {
        let mut kept = pending(&[100, 101]);
        kept.fill(100);
        let mut now = kept.clone();
        assert!(kept.filled_since(&now).is_empty());
        now.fill(101);
        assert_eq!(kept.filled_since(&now), [101]);
        let mut restored = kept.clone();
        restored.move_storage(101, 102);
        assert_eq!(
            (&restored.unpublished[..], &restored.discarded[..], &restored.changes.garbage[..]),
            (&[100, 102][..], &[101][..], &[][..])
        );
        assert_eq!(restored.catalog.by_id(1010).map(|table| table.storage_id), Some(102));
        assert_eq!(restored.changes.put.len(), 2);
    }

    #[test]
    fn what_nobody_goes_back_to_is_garbage() {
        let kept = pending(&[100]);
        let mut now = kept.clone();
        let table = Arc::clone(now.catalog.by_id(1000).expect("it was created"));
        now.drop(&table);
        now.create(Arc::new(TableDescriptor { id: 2000, storage_id: 200, name: "u".into(), ..(*table).clone() }));
        now.unpublished_indexes.push((5, 6));
        assert_eq!(now.made_since(Some(&kept)), (vec![200], vec![(5, 6)]));
        assert_eq!(now.made_since(None), (vec![100, 200], vec![(5, 6)]));
        assert_eq!(kept.made_since(Some(&now)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn keys_move_with_their_table() {
        let key = |storage_id| [&index_prefix(SQL_KEYSPACE, storage_id, 3)[..], b"rest"].concat();
        assert_eq!(moved(&key(7), (7, 8)).as_deref(), Some(&key(8)[..]));
        assert_eq!(moved(&key(6), (7, 8)), None);
        assert_eq!(moved(b"short", (7, 8)), None);
    }
}
