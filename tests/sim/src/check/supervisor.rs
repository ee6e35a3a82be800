//! What PD may tell stores to do: never to leave fewer live voters than a quorum.
//!
//! Judged by what that PD can know: which stores it has heard of lately, and the region as its leader reported it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;
use proto::{
    Epoch, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
    wire::{HeartbeatRequest, HeartbeatResponse, RegionStep, peer_change_step::Kind as Change, region_step::Kind},
};

use crate::runtime::World;

/// PD calls a store disconnected after 5 s of silence; what was under way meanwhile is forgiven.
const HEARD_WITHIN: Duration = Duration::from_millis(5_500);

#[derive(Default)]
struct Seen {
    /// By (PD's store, store): when PD last got its heartbeat, in true time.
    heard: BTreeMap<(StoreId, StoreId), Duration>,
    /// As last reported to anybody.
    regions: BTreeMap<RegionId, Region>,
}

/// Sees the heartbeats between nodes, and counts what comes of them. Those of PD's own store it does not see.
#[derive(Default)]
pub struct Supervisor(Mutex<Seen>);

impl Supervisor {
    /// The node of store `pd` answers a heartbeat.
    pub fn exchange(
        &self,
        world: &World,
        pd: StoreId,
        request: &HeartbeatRequest,
        answer: &HeartbeatResponse,
    ) -> Result<(), String> {
        if answer.pd_term == 0 || !answer.refusal.is_empty() {
            return Ok(());
        }
        let mut seen = self.0.lock();
        if request.listen_ms == 0 {
            let store = request.store.as_ref().and_then(|s| s.store.as_ref()).map_or(0, |s| s.id);
            seen.heard.insert((pd, StoreId(store)), world.now());
            let regions = request.regions.iter().filter_map(|r| Region::try_from(r.region.clone()?).ok());
            seen.regions.extend(regions.map(|r| (r.id, r)));
        }
        for step in &answer.steps {
            match &step.kind {
                Some(Kind::ChangePeers(_)) => {
                    world.count("memberships changed by PD", 1);
                    seen.judge(world.now(), pd, step)?;
                }
                Some(Kind::TransferLeader(_)) => world.count("leaders moved by PD", 1),
                Some(Kind::Split(_)) => world.count("splits by PD", 1),
                Some(Kind::Merge(_)) => world.count("merges by PD", 1),
                None => {}
            }
        }
        Ok(())
    }
}

impl Seen {
    fn judge(&self, now: Duration, pd: StoreId, step: &RegionStep) -> Result<(), String> {
        let Some(Kind::ChangePeers(change)) = &step.kind else { return Ok(()) };
        let Some(region) = self.regions.get(&RegionId(step.region_id)) else { return Ok(()) };
        if step.epoch.map(Epoch::from) != Some(region.epoch) {
            return Ok(());
        }
        let (mut up, mut down) = (BTreeSet::new(), BTreeSet::new());
        for change in &change.changes {
            match change.kind {
                Some(Change::Promote(id)) => up.insert(PeerId(id)),
                Some(Change::Demote(id) | Change::Remove(id)) => down.insert(PeerId(id)),
                _ => false,
            };
        }
        if up.is_empty() && down.is_empty() {
            return Ok(());
        }
        let votes = |p: &&Peer| {
            let does = matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter);
            (does && !down.contains(&p.id)) || up.contains(&p.id)
        };
        let lives = |p: &&Peer| {
            let heard = self.heard.get(&(pd, p.store));
            p.store == pd || heard.is_some_and(|at| now.saturating_sub(*at) <= HEARD_WITHIN)
        };
        let voters: Vec<_> = region.peers.iter().filter(votes).collect();
        let (alive, quorum) = (voters.iter().filter(|p| lives(p)).count(), voters.len() / 2 + 1);
        match alive < quorum {
            true => Err(format!(
                "PD on {pd} removes below quorum: {} would have {} voters, {alive} of them alive as far as it can know",
                region.id,
                voters.len()
            )),
            false => Ok(()),
        }
    }
}
