//! The row locks of one transaction, as far as its client knows. PURE.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::{StoreId, Timestamp, wire::RowLockMode};

use crate::row_locks::Place;

/// Rows locked, or asked for.
#[derive(Debug, Default)]
pub(crate) struct HeldRows {
    rows: BTreeMap<Bytes, HeldRow>,
    /// In the order in which they were asked for first.
    order: BTreeMap<usize, Bytes>,
    asked: usize,
}

/// A row that must have been locked without a gap, and where it was locked; nowhere: it was not.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    pub(crate) key: Bytes,
    pub(crate) place: Option<Place>,
}

#[derive(Debug)]
struct HeldRow {
    mode: RowLockMode,
    /// The row's newest version when it was locked; `None`: it may be locked, nobody has said so.
    seen: Option<Timestamp>,
    /// Where it was locked first. A later lock elsewhere does not say that nobody had the row in between.
    place: Option<Place>,
    /// Whose leader was asked.
    store: StoreId,
    /// When, among the others.
    at: usize,
}

impl HeldRows {
    /// These are asked for at `store`.
    pub(crate) fn ask(&mut self, keys: &[Bytes], mode: RowLockMode, store: StoreId) {
        for key in keys {
            match self.rows.get_mut(key) {
                Some(row) => row.store = store,
                None => {
                    let at = self.asked;
                    self.asked += 1;
                    self.rows.insert(key.clone(), HeldRow { mode, seen: None, place: None, store, at });
                    self.order.insert(at, key.clone());
                }
            }
        }
    }

    /// A row is locked, and its newest version is `seen`. `false`: it was locked before, and has changed since. Under a KEY SHARE
    /// others may have changed it: who has asked for more now has read what they made of it.
    pub(crate) fn granted(&mut self, key: &Bytes, mode: RowLockMode, seen: Timestamp, place: Place) -> bool {
        let Some(row) = self.rows.get_mut(key) else { return true };
        row.place.get_or_insert(place);
        if row.mode == RowLockMode::KeyShare {
            (row.mode, row.seen) = (mode, Some(seen));
            return true;
        }
        row.mode = row.mode.max(mode);
        *row.seen.get_or_insert(seen) == seen
    }

    /// A row is not locked after all.
    pub(crate) fn forget(&mut self, key: &Bytes) {
        if self.rows.get(key).is_some_and(|row| row.seen.is_none()) {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Bytes) -> Option<StoreId> {
        let row = self.rows.remove(key)?;
        self.order.remove(&row.at);
        Some(row.store)
    }

    /// The row's version when it was locked, if it is locked at least so strongly.
    pub(crate) fn seen(&self, key: &Bytes, mode: RowLockMode) -> Option<Timestamp> {
        self.rows.get(key).filter(|row| row.mode >= mode)?.seen
    }

    /// The row's version when it was locked, however.
    pub(crate) fn version(&self, key: &Bytes) -> Option<Timestamp> {
        self.rows.get(key)?.seen
    }

    /// The newest version of any of them.
    pub(crate) fn newest(&self) -> Timestamp {
        self.rows.values().filter_map(|row| row.seen).max().unwrap_or(Timestamp::ZERO)
    }

    /// How many were asked for so far: a place for [`HeldRows::take_since`].
    pub(crate) fn count(&self) -> usize {
        self.asked
    }

    /// Those that were asked for since `place` are forgotten here; their stores keep them until they are told.
    pub(crate) fn take_since(&mut self, place: usize) -> BTreeMap<StoreId, Vec<Bytes>> {
        let keys: Vec<Bytes> = self.order.range(place..).map(|(_, key)| key.clone()).collect();
        self.take_all(&keys)
    }

    /// Those of `keys` that were asked for since `place`.
    pub(crate) fn take_some(&mut self, keys: &[Bytes], place: usize) -> BTreeMap<StoreId, Vec<Bytes>> {
        let since = |key: &&Bytes| self.rows.get(*key).is_some_and(|row| row.at >= place);
        let keys: Vec<Bytes> = keys.iter().filter(since).cloned().collect();
        self.take_all(&keys)
    }

    /// Those of `keys` that were asked for.
    pub(crate) fn take_all<'k>(&mut self, keys: impl IntoIterator<Item = &'k Bytes>) -> BTreeMap<StoreId, Vec<Bytes>> {
        let mut taken: BTreeMap<StoreId, Vec<Bytes>> = BTreeMap::new();
        for key in keys {
            if let Some(store) = self.remove(key) {
                taken.entry(store).or_default().push(key.clone());
            }
        }
        taken
    }

    /// How many rows are locked or asked for.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows that nobody else may lock at all.
    pub(crate) fn exclusive(&self) -> impl Iterator<Item = &Bytes> {
        let exclusive = |row: &HeldRow| row.seen.is_some() && row.mode >= RowLockMode::NoKeyUpdate;
        self.rows.iter().filter(move |(_, row)| exclusive(row)).map(|(key, _)| key)
    }

    /// What proves at the end that a row has been locked all the time.
    pub(crate) fn proof(&self, key: &Bytes) -> Proof {
        Proof { key: key.clone(), place: self.rows.get(key).and_then(|row| row.place) }
    }

    /// All but these (sorted) are somebody else's business from now on.
    pub(crate) fn retain(&mut self, proofs: &[Proof]) {
        let stays = |key: &Bytes| proofs.binary_search_by(|proof| proof.key.cmp(key)).is_ok();
        self.rows.retain(|key, _| stays(key));
        self.order.retain(|_, key| stays(key));
    }

    /// Stores that keep locks of it.
    pub(crate) fn stores(&self) -> BTreeSet<StoreId> {
        self.rows.values().map(|row| row.store).collect()
    }

    /// Whose leader was asked for a row.
    pub(crate) fn store_of(&self, key: &Bytes) -> Option<StoreId> {
        self.rows.get(key).map(|row| row.store)
    }

    /// All that are locked, in key order.
    pub(crate) fn locked(&self) -> impl Iterator<Item = &Bytes> {
        self.rows.iter().filter(|(_, row)| row.seen.is_some()).map(|(key, _)| key)
    }

    /// None was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proto::{RegionId, Term};

    use super::*;

    const STORE: StoreId = StoreId(7);
    const PLACE: Place = Place { region: RegionId(2), term: Term(5) };

    fn key(k: &'static str) -> Bytes {
        Bytes::from_static(k.as_bytes())
    }

    #[test]
    fn going_back_gives_up_what_was_locked_since() {
        let mut held = HeldRows::default();
        held.ask(&[key("a"), key("b")], RowLockMode::Share, STORE);
        assert!(held.granted(&key("a"), RowLockMode::Share, Timestamp(5), PLACE));
        held.forget(&key("b"));
        let place = held.count();
        held.ask(&[key("a"), key("c")], RowLockMode::Update, STORE);
        assert!(held.granted(&key("a"), RowLockMode::Update, Timestamp(5), PLACE));
        assert_eq!(held.take_since(place), BTreeMap::from([(STORE, vec![key("c")])]));
        assert_eq!((held.seen(&key("a"), RowLockMode::Update), held.version(&key("b"))), (Some(Timestamp(5)), None));
        assert_eq!(held.take_since(0), BTreeMap::from([(STORE, vec![key("a")])]));
        assert!(held.is_empty());
    }

    #[test]
    fn what_is_retained_is_given_up_alone() {
        let mut held = HeldRows::default();
        held.ask(&[key("a"), key("b")], RowLockMode::Share, STORE);
        held.retain(&[held.proof(&key("b"))]);
        assert_eq!(held.take_since(0), BTreeMap::from([(STORE, vec![key("b")])]));
    }

    #[test]
    fn a_row_whose_key_alone_is_shared_may_change() {
        let mut held = HeldRows::default();
        held.ask(&[key("a")], RowLockMode::KeyShare, STORE);
        assert!(held.granted(&key("a"), RowLockMode::KeyShare, Timestamp(5), PLACE));
        assert!(held.granted(&key("a"), RowLockMode::KeyShare, Timestamp(6), PLACE));
        assert!(held.granted(&key("a"), RowLockMode::NoKeyUpdate, Timestamp(7), PLACE));
        assert_eq!(held.version(&key("a")), Some(Timestamp(7)));
        assert!(!held.granted(&key("a"), RowLockMode::NoKeyUpdate, Timestamp(8), PLACE));
    }

    #[test]
    fn a_lock_that_was_lost_in_between_is_noticed() {
        let mut held = HeldRows::default();
        held.ask(&[key("a")], RowLockMode::Update, STORE);
        assert!(held.granted(&key("a"), RowLockMode::Update, Timestamp(5), PLACE));
        assert!(!held.granted(&key("a"), RowLockMode::Update, Timestamp(6), PLACE));
    }

    #[test]
    fn a_lock_of_a_later_leader_proves_nothing_about_the_time_before() {
        let mut held = HeldRows::default();
        held.ask(&[key("a")], RowLockMode::KeyShare, STORE);
        assert_eq!(held.proof(&key("a")).place, None);
        assert!(held.granted(&key("a"), RowLockMode::KeyShare, Timestamp(5), PLACE));
        let later = Place { term: Term(6), ..PLACE };
        assert!(held.granted(&key("a"), RowLockMode::Update, Timestamp(5), later));
        assert_eq!(held.proof(&key("a")).place, Some(PLACE));
    }
}
