//! What no client has to see: rules that hold between replicas at every instant.
//!
//! - Election safety: a term of a region has one leader.
//! - Log matching: replicas apply the same entry at the same index.
//! - One lease: no two stores hold a lease that covers one key at one instant of true time, whatever the regions are
//!   called: a region that was split off and its parent on another store must not both serve.
//!
//! Clients see the harm of a broken rule only by luck and later; the referee names it when it happens.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use proto::{KeyRange, LogIndex, Region, RegionId, StoreId, Term};
use tokio::sync::oneshot;

struct Lease {
    range: KeyRange,
    until: Duration,
}

#[derive(Default)]
struct Seen {
    leaders: BTreeMap<(RegionId, Term), StoreId>,
    applied: BTreeMap<(RegionId, LogIndex), (Term, u64)>,
    leases: BTreeMap<(RegionId, StoreId), Lease>,
    curious: Vec<oneshot::Sender<StoreId>>,
    hungry: Vec<oneshot::Sender<StoreId>>,
}

/// Sees all stores at once.
#[derive(Default)]
pub struct Referee(Mutex<Seen>);

impl Referee {
    /// A store leads a region in a term.
    pub fn leads(&self, region: RegionId, term: Term, store: StoreId) -> Result<(), String> {
        let mut seen = self.0.lock();
        if !seen.leaders.contains_key(&(region, term)) {
            // Whoever asked may have gone.
            seen.curious.drain(..).for_each(|asker| asker.send(store).unwrap_or_default());
        }
        let first = *seen.leaders.entry((region, term)).or_insert(store);
        match first == store {
            true => Ok(()),
            false => Err(format!("{region}, {term}: two leaders, {first} and {store}")),
        }
    }

    /// Tells who wins the next election, of any region.
    pub fn next_election(&self) -> oneshot::Receiver<StoreId> {
        let (asker, answer) = oneshot::channel();
        self.0.lock().curious.push(asker);
        answer
    }

    /// Tells who takes the next snapshot, of any region.
    pub fn next_snapshot(&self) -> oneshot::Receiver<StoreId> {
        let (asker, answer) = oneshot::channel();
        self.0.lock().hungry.push(asker);
        answer
    }

    /// A store begins to take a snapshot.
    pub fn takes_snapshot(&self, store: StoreId) {
        // Whoever asked may have gone.
        self.0.lock().hungry.drain(..).for_each(|asker| asker.send(store).unwrap_or_default());
    }

    /// A store applies an entry; `hash` is of its bytes.
    pub fn applies(
        &self,
        region: RegionId,
        index: LogIndex,
        term: Term,
        hash: u64,
        store: StoreId,
    ) -> Result<(), String> {
        let first = *self.0.lock().applied.entry((region, index)).or_insert((term, hash));
        match first == (term, hash) {
            true => Ok(()),
            false => Err(format!(
                "{region}, {index}: {store} applies an entry of {term}, others had another one of {}",
                first.0
            )),
        }
    }

    /// At `now` a store's lease of a region ends at `until`, both in true time; `None`: it has none.
    pub fn lease(&self, region: &Region, store: StoreId, now: Duration, until: Option<Duration>) -> Result<(), String> {
        let mut seen = self.0.lock();
        let key = (region.id, store);
        let Some(until) = until.filter(|until| *until > now) else {
            seen.leases.remove(&key);
            return Ok(());
        };
        seen.leases.retain(|_, lease| lease.until > now);
        seen.leases.insert(key, Lease { range: region.range.clone(), until });
        let covers = |lease: &Lease| lease.range.intersect(&region.range).is_some();
        match seen.leases.iter().find(|((_, other), lease)| *other != store && covers(lease)) {
            None => Ok(()),
            Some(((id, other), lease)) => Err(format!(
                "{}: {store} has the lease until {until:?}, and {other} that of {id} until {:?}",
                region.id, lease.until
            )),
        }
    }

    /// A dead store serves nobody.
    pub fn died(&self, store: StoreId) {
        self.0.lock().leases.retain(|(_, at), _| *at != store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId(7);

    fn region(id: u64, start: &'static str, end: &'static str) -> Region {
        Region { id: RegionId(id), range: KeyRange::new(start, end), epoch: Default::default(), peers: Vec::new() }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_term_has_one_leader() {
        let referee = Referee::default();
        referee.leads(REGION, Term(3), StoreId(1)).unwrap();
        referee.leads(REGION, Term(3), StoreId(1)).unwrap();
        referee.leads(REGION, Term(4), StoreId(2)).unwrap();
        referee.leads(REGION, Term(3), StoreId(2)).unwrap_err();
    }

    #[test]
    fn replicas_apply_the_same_entries() {
        let referee = Referee::default();
        referee.applies(REGION, LogIndex(9), Term(3), 0xaa, StoreId(1)).unwrap();
        referee.applies(REGION, LogIndex(9), Term(3), 0xaa, StoreId(2)).unwrap();
        referee.applies(REGION, LogIndex(9), Term(3), 0xbb, StoreId(3)).unwrap_err();
        referee.applies(REGION, LogIndex(9), Term(4), 0xaa, StoreId(3)).unwrap_err();
    }

    #[test]
    fn leases_do_not_overlap() {
        let referee = Referee::default();
        let whole = region(7, "a", "z");
        referee.lease(&whole, StoreId(1), ms(10), Some(ms(100))).unwrap();
        referee.lease(&whole, StoreId(2), ms(50), Some(ms(150))).unwrap_err();
        referee.lease(&region(8, "m", "z"), StoreId(3), ms(50), Some(ms(150))).unwrap_err();
        referee.died(StoreId(2));
        referee.died(StoreId(3));
        referee.lease(&region(8, "z", ""), StoreId(3), ms(50), Some(ms(150))).unwrap();
        referee.lease(&whole, StoreId(2), ms(100), Some(ms(150))).unwrap();
        referee.died(StoreId(2));
        referee.lease(&whole, StoreId(3), ms(110), Some(ms(200))).unwrap();
        referee.lease(&whole, StoreId(3), ms(120), None).unwrap();
        referee.lease(&whole, StoreId(1), ms(130), Some(ms(300))).unwrap();
    }
}
