//! Stores that tell each other that they live, in place of their sleeping regions.
//!
//! Every store that shares a region with this one gets a beat at the pace of heartbeats, with a number that grows at
//! every start. Who is silent for an election timeout, or has another number, is lost: regions that it led wake.
//! A store beats only while its disk answers: what does not sync can't lead, however well it speaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{StoreId, wire};

use super::StoreCore;
use crate::{clock::Instant, config::Planted, region::outbox::Outbox};

/// Another store.
struct Neighbour {
    boot_id: u64,
    heard: Instant,
    silent: bool,
}

/// What is known of the others, and of the own disk.
pub(super) struct Beats {
    neighbours: BTreeMap<StoreId, Neighbour>,
    ticks: u32,
    /// When the log was last synced, as far as it is known.
    synced: Instant,
    /// Stores that regions are shared with; looked up now and then.
    targets: BTreeSet<StoreId>,
}

impl Beats {
    pub(super) fn new(now: Instant) -> Self {
        Beats { neighbours: BTreeMap::new(), ticks: 0, synced: now, targets: BTreeSet::new() }
    }

    /// The log was synced.
    pub(super) fn synced(&mut self, now: Instant) {
        self.synced = now;
    }

    /// Whether the log has to be synced for no other reason than to see that it can be.
    pub(super) fn probe_is_due(&self, now: Instant, election: Duration) -> bool {
        now.since(self.synced) >= election / 2
    }

    /// Whether a store beats.
    pub(super) fn lives(&self, store: StoreId) -> bool {
        self.neighbours.get(&store).is_some_and(|neighbour| !neighbour.silent)
    }

    /// A beat of another store; whether it is not the process that was known.
    fn heard(&mut self, now: Instant, store: StoreId, boot_id: u64) -> bool {
        let neighbour = Neighbour { boot_id, heard: now, silent: false };
        self.neighbours.insert(store, neighbour).is_none_or(|before| before.boot_id != boot_id)
    }

    /// Stores that have fallen silent since the last call.
    fn fallen_silent(&mut self, now: Instant, election: Duration) -> Vec<StoreId> {
        let mut fallen = Vec::new();
        for (store, neighbour) in &mut self.neighbours {
            if !neighbour.silent && now.since(neighbour.heard) >= election {
                neighbour.silent = true;
                fallen.push(*store);
            }
        }
        fallen
    }
}

impl StoreCore {
    /// A tick passed.
    pub(super) fn beat(&mut self, now: Instant, out: &mut Outbox) {
        let election = self.config.election_timeout();
        for store in self.beats.fallen_silent(now, election) {
            self.lost_store(now, store);
        }
        self.beats.ticks += 1;
        if !self.beats.ticks.is_multiple_of(self.config.heartbeat_ticks) || now.since(self.beats.synced) >= election {
            return;
        }
        if self.beats.ticks.is_multiple_of(self.config.election_ticks) || self.beats.targets.is_empty() {
            let own = self.config.store;
            let peers = self.replicas.values().flat_map(|replica| replica.region().peers.iter());
            self.beats.targets = peers.map(|peer| peer.store).filter(|store| *store != own).collect();
        }
        let beat = wire::StoreBeat { store_id: self.config.store.0, boot_id: self.config.boot_id };
        let message = wire::RaftMessage { beat: Some(beat), ..wire::RaftMessage::default() };
        out.messages.extend(self.beats.targets.iter().map(|store| (*store, message.clone())));
    }

    /// Another store says that it lives.
    pub(super) fn heard_beat(&mut self, now: Instant, beat: wire::StoreBeat) {
        if self.beats.heard(now, StoreId(beat.store_id), beat.boot_id) {
            self.lost_store(now, StoreId(beat.store_id));
        }
    }

    fn lost_store(&mut self, now: Instant, store: StoreId) {
        if self.config.has(Planted::SleepThroughRestart) {
            return;
        }
        for (region, replica) in &mut self.replicas {
            if replica.lost_store(now, store, |store| self.beats.lives(store)) {
                self.dirty.insert(*region);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(Duration::from_millis(ms))
    }

    #[test]
    fn silence_and_restarts_are_noticed_once() {
        let (mut beats, election) = (Beats::new(at(0)), Duration::from_millis(1000));
        assert!(beats.heard(at(0), StoreId(2), 7), "it was not known");
        assert!(!beats.heard(at(900), StoreId(2), 7) && beats.lives(StoreId(2)));
        assert!(beats.fallen_silent(at(1800), election).is_empty());
        assert_eq!(beats.fallen_silent(at(1900), election), [StoreId(2)]);
        assert!(beats.fallen_silent(at(2000), election).is_empty() && !beats.lives(StoreId(2)));
        assert!(!beats.heard(at(2100), StoreId(2), 7) && beats.lives(StoreId(2)));
        assert!(beats.heard(at(2200), StoreId(2), 8), "another process");
    }
}
