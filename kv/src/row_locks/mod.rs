//! Row locks: who holds which rows of the regions led here, and who waits for them. PURE: events with the time in,
//! grants out.
//!
//! ```text
//!                 KEY SHARE   SHARE   NO KEY UPDATE   UPDATE        a request is granted when it conflicts with
//! KEY SHARE           –         –           –           ×           no holder, and with nobody who came before it
//! SHARE               –         –           ×           ×           and still waits; who holds a weaker lock of
//! NO KEY UPDATE       –         ×           ×           ×           the row already goes before those
//! UPDATE              ×         ×           ×           ×
//!
//!   row a   [T1 UPDATE]  T2 NO KEY UPDATE  T3 SHARE      T2 waits for T1, T3 for T2 (and so for T1)
//! ```
//!
//! They live in the leader's memory only. That is enough, because nobody trusts them alone: a prewrite checks that
//! nothing was committed under its key since the lock's owner saw it, and a lock that no write follows is
//! asked for once more while its transaction commits ([`RowLocks::holds`]). What is lost with a leader costs its
//! owners a 40001 and nothing else. So an entry belongs to a [`Place`], a region and a term: of another term of that
//! region nothing counts any more. A split keeps the entries, for the store that led both halves goes on. Who waits goes on
//! waiting in the next term of the same leader, and may be granted there what another leader had granted it before: an
//! owner names the term in which it was told that it holds a row.
//!
//! An owner that is not heard of (requests, [`RowLocks::keep`]) loses everything at the time it was told. Nothing here
//! has a timer: whoever comes or asks again finds what has run out.

mod wait_edges;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::{RegionId, Term, Timestamp, wire::RowLockMode};
use raftstore::Instant;

pub use wait_edges::Wait;

/// Rows locked and waited for on one store at most: some 200 bytes each.
pub const MAX_ROWS: usize = 1_000_000;
/// Between two searches for owners that are not heard of any more and whom nobody waits for.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(10);

/// Where a lock is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region that held the row.
    pub region: RegionId,
    /// Of its leader.
    pub term: Term,
}

/// What a transaction wants.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The transaction, by its start timestamp.
    pub owner: Timestamp,
    /// How.
    pub mode: RowLockMode,
    /// Until when it counts as alive if nothing more is heard of it.
    pub until: Instant,
    /// For people who look at who waits for whom: the statement.
    pub label: Bytes,
    /// Another transaction of the same client, which does not go on while this one waits; zero: none.
    pub twin: Timestamp,
}

/// Of one that waits for others behind what it holds: as in [`Claim`].
#[derive(Clone, Debug, Default)]
pub struct Waiter {
    /// The statement.
    pub label: Bytes,
    /// Another transaction of the same client.
    pub twin: Timestamp,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The row is the owner's, in the mode asked for or a stronger one.
    Held,
    /// It waits in the row's queue.
    Waits,
    /// [`MAX_ROWS`].
    Full,
}

/// A waiting claim has been granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// To this transaction.
    pub owner: Timestamp,
    /// This row.
    pub key: Bytes,
}

/// One row with its owners and its queue; never empty.
#[derive(Debug, Default)]
struct Row {
    holders: Vec<Part>,
    /// First come first served.
    queue: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    owner: Timestamp,
    mode: RowLockMode,
    /// Where it was asked for first.
    place: Place,
}

#[derive(Debug)]
struct Owner {
    until: Instant,
    label: Bytes,
    /// Waits while the owner waits.
    twin: Timestamp,
    /// Held or waited for.
    keys: BTreeSet<Bytes>,
    /// Behind a row that it holds, whoever else has to end before it goes on.
    behind: Option<(Bytes, Vec<Timestamp>)>,
}

impl Owner {
    /// Of no row yet.
    fn until(until: Instant) -> Self {
        Owner { until, label: Bytes::new(), twin: Timestamp::ZERO, keys: BTreeSet::new(), behind: None }
    }
}

/// The row locks of one store.
#[derive(Debug, Default)]
pub struct RowLocks {
    rows: BTreeMap<Bytes, Row>,
    owners: BTreeMap<Timestamp, Owner>,
    swept: Instant,
}

/// PostgreSQL's table of row locks that exclude each other.
pub fn conflicts(a: RowLockMode, b: RowLockMode) -> bool {
    use RowLockMode::{KeyShare, Share, Update};
    let (weak, strong) = (a.min(b), a.max(b));
    match weak {
        KeyShare => strong == Update,
        Share => strong > Share,
        _ => true,
    }
}

impl RowLocks {
    /// Asks for a row, or for the result of an earlier claim. Whoever it frees the way for besides is in `grants`.
    pub fn claim(&mut self, key: &Bytes, place: Place, claim: Claim, now: Instant, grants: &mut Vec<Grant>) -> Claimed {
        self.sweep(now);
        self.bury(claim.owner, now, grants);
        self.refresh(key, Some(place), now, grants);
        let known = self.rows.contains_key(key);
        if !known && self.rows.len() >= MAX_ROWS {
            return Claimed::Full;
        }
        let Claim { owner, mode, until, label, twin } = claim;
        let claimed = self.rows.entry(key.clone()).or_default().claim(Part { owner, mode, place });
        let entry = self.owners.entry(owner).or_insert_with(|| Owner::until(until));
        entry.until = entry.until.max(until);
        (entry.label, entry.twin) = (label, twin);
        entry.keys.insert(key.clone());
        claimed
    }

    /// A written lock of `holder` stands on a row that `claimant` was given: the holder goes before it, until then if nothing is
    /// heard of it. So others wait for it here, and circles are found.
    pub fn yield_to(&mut self, holder: Timestamp, key: &Bytes, claimant: Timestamp, until: Instant) {
        let Some(row) = self.rows.get_mut(key) else { return };
        if row.holders.iter().any(|part| part.owner == holder) {
            return;
        }
        let Some(at) = row.holders.iter().position(|part| part.owner == claimant) else { return };
        let part = row.holders.swap_remove(at);
        row.queue.retain(|waiting| waiting.owner != claimant);
        row.queue.insert(0, part);
        row.holders.push(Part { owner: holder, mode: RowLockMode::Update, place: part.place });
        let entry = self.owners.entry(holder).or_insert_with(|| Owner::until(until));
        entry.until = entry.until.max(until);
        entry.keys.insert(key.clone());
    }

    /// The owner gives these rows up, held or waited for.
    pub fn release<'k>(&mut self, owner: Timestamp, keys: impl IntoIterator<Item = &'k Bytes>) -> Vec<Grant> {
        let mut grants = Vec::new();
        for key in keys {
            let Some(entry) = self.owners.get_mut(&owner) else { break };
            if entry.keys.remove(key) {
                if entry.keys.is_empty() {
                    self.owners.remove(&owner);
                }
                self.drop_parts(key, |part| part.owner == owner, &mut grants);
            }
        }
        grants
    }

    /// The owner stops waiting for a row; what it held of it before stays.
    pub fn give_up(&mut self, owner: Timestamp, key: &Bytes) -> Vec<Grant> {
        let mut grants = Vec::new();
        let Some(row) = self.rows.get_mut(key) else { return grants };
        row.queue.retain(|part| part.owner != owner);
        let holds = row.holders.iter().any(|part| part.owner == owner);
        if !holds {
            self.forget(owner, key);
        }
        self.settle(key, &mut grants);
        grants
    }

    /// The owner holds a row, and waits for other transactions all the same, of which nothing is known here. `false`: it does not
    /// hold it.
    pub fn wait_behind(&mut self, owner: Timestamp, key: &Bytes, others: Vec<Timestamp>, who: Waiter) -> bool {
        let holds = |row: &Row| row.holders.iter().any(|part| part.owner == owner);
        if !self.rows.get(key).is_some_and(holds) {
            return false;
        }
        let Some(entry) = self.owners.get_mut(&owner) else { return false };
        entry.behind = Some((key.clone(), others));
        (entry.label, entry.twin) = (who.label, who.twin);
        true
    }

    /// The owner does not wait behind what it holds any more.
    pub fn go_on(&mut self, owner: Timestamp) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.behind = None;
        }
    }

    /// The owner is alive until then. One whose time is over has lost its locks.
    pub fn keep(&mut self, owner: Timestamp, until: Instant, now: Instant) -> Vec<Grant> {
        let mut grants = Vec::new();
        self.bury(owner, now, &mut grants);
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.until = entry.until.max(until);
        }
        grants
    }

    /// What an owner had whose time is over is gone, even if it is heard of again: others may have written there.
    fn bury(&mut self, owner: Timestamp, now: Instant, grants: &mut Vec<Grant>) {
        let dead = self.owners.get(&owner).filter(|entry| entry.until <= now);
        if let Some(keys) = dead.map(|entry| entry.keys.clone()) {
            grants.extend(self.release(owner, &keys));
        }
    }

    /// Somebody else's lock that excludes `mode` on a row.
    pub fn blocker(
        &self,
        key: &[u8],
        owner: Timestamp,
        mode: RowLockMode,
        place: Place,
        now: Instant,
    ) -> Option<Timestamp> {
        let others = self.rows.get(key)?.holders.iter().filter(|part| part.owner != owner);
        let mut others = others.filter(|part| conflicts(part.mode, mode) && !part.is_stale(place));
        others.find(|part| self.is_alive(part.owner, now)).map(|part| part.owner)
    }

    /// The owner's lock of a row keeps others off now, though perhaps not since it was granted.
    pub fn excludes(&self, key: &[u8], owner: Timestamp, place: Place, now: Instant) -> bool {
        let held = |part: &Part| part.owner == owner && !part.is_stale(place);
        self.rows.get(key).is_some_and(|row| row.holders.iter().any(held)) && self.is_alive(owner, now)
    }

    /// The owner has had the row since it was granted there, without a gap.
    pub fn holds(&self, key: &[u8], owner: Timestamp, place: Place, now: Instant) -> bool {
        let held = |part: &Part| part.owner == owner && part.place == place;
        self.rows.get(key).is_some_and(|row| row.holders.iter().any(held)) && self.is_alive(owner, now)
    }

    /// Rows held or waited for.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Nobody holds or waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn is_alive(&self, owner: Timestamp, now: Instant) -> bool {
        self.owners.get(&owner).is_some_and(|entry| entry.until > now)
    }

    /// Takes out of a row what has run out, and holders of another term. Those who wait go on waiting in the new one.
    fn refresh(&mut self, key: &Bytes, place: Option<Place>, now: Instant, grants: &mut Vec<Grant>) {
        let Some(row) = self.rows.get(key) else { return };
        let dead = |part: &&Part| !self.is_alive(part.owner, now);
        let stale = |part: &&Part| place.is_some_and(|place| part.is_stale(place));
        let holders: Vec<Timestamp> = row.holders.iter().filter(|p| dead(p) || stale(p)).map(|p| p.owner).collect();
        let waiting: Vec<Timestamp> = row.queue.iter().filter(dead).map(|part| part.owner).collect();
        if holders.is_empty() && waiting.is_empty() {
            return;
        }
        let row = self.rows.get_mut(key).expect("it is there");
        row.holders.retain(|part| !holders.contains(&part.owner));
        row.queue.retain(|part| !waiting.contains(&part.owner));
        for part in &mut row.queue {
            part.place = place.unwrap_or(part.place);
        }
        let stays = |owner: &Timestamp| row.holders.iter().chain(&row.queue).any(|part| part.owner == *owner);
        let gone: Vec<Timestamp> = holders.into_iter().chain(waiting).filter(|owner| !stays(owner)).collect();
        gone.into_iter().for_each(|owner| self.forget(owner, key));
        self.settle(key, grants);
    }

    fn forget(&mut self, owner: Timestamp, key: &Bytes) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.keys.remove(key);
            if entry.keys.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }

    fn drop_parts(&mut self, key: &Bytes, gone: impl Fn(&Part) -> bool, grants: &mut Vec<Grant>) {
        if let Some(row) = self.rows.get_mut(key) {
            row.holders.retain(|part| !gone(part));
            row.queue.retain(|part| !gone(part));
            self.settle(key, grants);
        }
    }

    /// Grants what can be granted; a row that nobody wants goes.
    fn settle(&mut self, key: &Bytes, grants: &mut Vec<Grant>) {
        let Some(row) = self.rows.get_mut(key) else { return };
        grants.extend(row.grant().into_iter().map(|owner| Grant { owner, key: key.clone() }));
        if row.holders.is_empty() && row.queue.is_empty() {
            self.rows.remove(key);
        }
    }

    /// Forgets owners that are not heard of, now and then: rows that nobody asks for would stay for ever, on a store that leads
    /// their region no more for instance.
    pub fn sweep(&mut self, now: Instant) {
        if now.since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let dead = |entry: &&Owner| entry.until <= now;
        let keys: BTreeSet<Bytes> = self.owners.values().filter(dead).flat_map(|entry| entry.keys.clone()).collect();
        // A row where somebody waits who is heard of is refreshed by that one, which must hear of its grant.
        let waited_for = |key: &Bytes| {
            self.rows.get(key).is_some_and(|row| row.queue.iter().any(|part| self.is_alive(part.owner, now)))
        };
        let keys: Vec<Bytes> = keys.into_iter().filter(|key| !waited_for(key)).collect();
        keys.iter().for_each(|key| self.refresh(key, None, now, &mut Vec::new()));
    }
}

impl Part {
    /// Of another term of the same region. A row that changed its region has come there by a split or a merge.
    fn is_stale(&self, place: Place) -> bool {
        self.place.region == place.region && self.place.term != place.term
    }
}

impl Row {
    fn claim(&mut self, claim: Part) -> Claimed {
        let Part { owner, mode, .. } = claim;
        if let Some(held) = self.holders.iter().find(|part| part.owner == owner)
            && held.mode >= mode
        {
            return Claimed::Held;
        }
        match self.queue.iter_mut().find(|part| part.owner == owner) {
            Some(waiting) => waiting.mode = waiting.mode.max(mode),
            None => self.queue.push(claim),
        }
        // Nobody else can be granted by a claim that joins the queue.
        if self.grant().contains(&owner) { Claimed::Held } else { Claimed::Waits }
    }

    fn is_upgrade(&self, waiting: &Part) -> bool {
        self.holders.iter().any(|part| part.owner == waiting.owner)
    }

    /// Moves whoever may from the queue to the holders.
    fn grant(&mut self) -> Vec<Timestamp> {
        let mut granted = Vec::new();
        let mut passed: Vec<Part> = Vec::new();
        let mut order: Vec<Part> = self.queue.clone();
        // Stable: those who hold the row already come first.
        order.sort_by_key(|part| !self.is_upgrade(part));
        for mut claim in order {
            let others = self.holders.iter().chain(&passed).filter(|part| part.owner != claim.owner);
            if others.into_iter().any(|part| conflicts(part.mode, claim.mode)) {
                passed.push(claim);
                continue;
            }
            self.queue.retain(|part| part.owner != claim.owner);
            // A stronger lock is as old as the weaker one was.
            if let Some(at) = self.holders.iter().position(|part| part.owner == claim.owner) {
                claim.place = self.holders.swap_remove(at).place;
            }
            self.holders.push(claim);
            granted.push(claim.owner);
        }
        granted
    }
}
