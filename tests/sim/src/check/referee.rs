//! What no client has to see: rules that hold between replicas at every instant.
//!
//! - Election safety: a term of a region has one leader.
//! - Log matching: replicas apply the same entry at the same index.
//! - One lease: no two stores hold a lease that covers one key at one instant of true time, whatever the regions are
//!   called: a region that was split off and its parent on another store must not both serve.
//!
//! - Living voters: no leader proposes voters of which too few are alive to decide anything.
//!
//! Clients see the harm of a broken rule only by luck and later; the referee names it when it happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;
use proto::{KeyRange, LogIndex, Peer, PeerRole, Region, RegionId, StoreId, Term};
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
    /// When each store last did something.
    stirred: BTreeMap<StoreId, Duration>,
    /// Changes of voters that were proposed.
    memberships: BTreeSet<(RegionId, LogIndex, Term)>,
    curious: Vec<oneshot::Sender<StoreId>>,
    hungry: Vec<oneshot::Sender<StoreId>>,
    greedy: Vec<oneshot::Sender<StoreId>>,
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

    /// Tells where a region is taken over next.
    pub fn next_merge(&self) -> oneshot::Receiver<StoreId> {
        let (asker, answer) = oneshot::channel();
        self.0.lock().greedy.push(asker);
        answer
    }

    /// A region has taken over another one on a store.
    pub fn merged(&self, store: StoreId) {
        // Whoever asked may have gone.
        self.0.lock().greedy.drain(..).for_each(|asker| asker.send(store).unwrap_or_default());
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

    /// A store is alive.
    pub fn stirs(&self, store: StoreId, now: Duration) {
        self.0.lock().stirred.insert(store, now);
    }

    /// A leader has proposed that the region gets these peers, by way of a joint state. Voters that have not stirred for
    /// `silence` are dead, and a leader knows it by then.
    pub fn proposes_voters(
        &self,
        (region, index, term): (RegionId, LogIndex, Term),
        peers: &[Peer],
        now: Duration,
        silence: Duration,
    ) -> Result<(), String> {
        let mut seen = self.0.lock();
        if !seen.memberships.insert((region, index, term)) {
            return Ok(());
        }
        let voters: Vec<_> =
            peers.iter().filter(|p| matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter)).collect();
        let alive = |p: &&&Peer| seen.stirred.get(&p.store).is_some_and(|at| now < *at + silence);
        let living = voters.iter().filter(alive).count();
        match living > voters.len() / 2 {
            true => Ok(()),
            false => Err(format!("{region}: of the voters-to-be {voters:?} only {living} live")),
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
    fn voters_to_be_are_alive() {
        let referee = Referee::default();
        let peer = |id, role| Peer { id: proto::PeerId(id), store: StoreId(id), role };
        let peers = [peer(1, PeerRole::Voter), peer(2, PeerRole::DemotingVoter), peer(3, PeerRole::IncomingVoter)];
        (1..=3).for_each(|store| referee.stirs(StoreId(store), ms(100)));
        let propose = |index, now| referee.proposes_voters((REGION, LogIndex(index), Term(3)), &peers, now, ms(500));
        propose(7, ms(200)).unwrap();
        referee.stirs(StoreId(1), ms(700));
        referee.stirs(StoreId(2), ms(700));
        propose(8, ms(800)).unwrap_err();
        propose(7, ms(800)).unwrap();
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
