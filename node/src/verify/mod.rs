//! Whether the replicas of a region hold the same: asked of all its stores, for people and in the background.
//!
//! ```text
//!   leader's store ◄── begin(mark) ── Verifier ── root? ──► every store with a replica      (over the nodes' doors)
//!                                        │ roots differ
//!                                        └──── all hashes? ──► one store of each kind ──► the key ranges that differ
//! ```
//!
//! Any node can ask. The stores hash by themselves ([`raftstore::verify`]); here is only who asks whom, and what to make
//! of the answers. Replicas that do not answer are named, and the comparison is incomplete then, never equal.
//!
//! Nothing is taken out of service when replicas differ: two of three may be wrong, and a region without its leader serves
//! nobody. A person decides, moves the replica away that is wrong (which makes it anew from the leader's), and
//! looks again. `docs/operations.md` says how.
//!
//! - [`answer`]: what a store answers.
//! - [`rounds`]: the slow pass over all regions.

pub mod answer;
pub mod rounds;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kv::{Clock, Pd, PdError};
use proto::{
    ClusterId, Region, RegionId, StoreId,
    wire::{
        FindRegionRequest, RegionStatus, ReplicaDifference, ReplicaHash, ReplicaVerdict, VerifyOutcome,
        VerifyRegionRequest, VerifyRegionResponse, VerifyRequest, VerifyResponse,
    },
};
use raftstore::{StoreHandle, verify::differences};

use crate::{AddressBook, NodeRpc, PdClient};

/// The longest an answer may wait; callers ask again.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Between looks for hashes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a leader is looked for, which may be another one or have another epoch by the time it is asked.
const BEGIN_ATTEMPTS: u32 = 10;
/// Between these attempts: an election takes some of them.
const BEGIN_AGAIN: Duration = Duration::from_millis(200);

/// Asks the stores of a region.
pub struct Verifier {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's store.
    pub store: StoreHandle,
    /// Knows the regions.
    pub pd: PdClient,
    /// To other nodes.
    pub rpc: Arc<dyn NodeRpc>,
    /// Where they are.
    pub book: Arc<AddressBook>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What a store said: its hash, nothing yet, or why there is none.
type Said = Result<Option<ReplicaHash>, String>;

impl Verifier {
    /// Compares the replicas of a region, or goes on with a comparison.
    pub async fn verify(&self, request: &VerifyRegionRequest) -> Result<VerifyRegionResponse, PdError> {
        let id = RegionId(request.region_id);
        let end = self.clock.now() + Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        let (mark, mut region) = match request.mark {
            0 => self.begin(id).await?,
            mark => (mark, region_of(&self.find(id).await?)?),
        };
        let mut said = BTreeMap::<StoreId, Said>::new();
        loop {
            for peer in region.peers.clone() {
                if !matches!(said.get(&peer.store), Some(Ok(Some(_)))) {
                    said.insert(peer.store, self.ask(peer.store, id, mark, false).await);
                }
            }
            // The first that knows the mark knows who was a peer then.
            let marked = said.values().find_map(|s| s.as_ref().ok()?.as_ref()?.region.clone());
            if let Some(marked) = marked.and_then(|r| Region::try_from(r).ok())
                && marked.peers != region.peers
            {
                said.retain(|store, _| marked.peer_on(*store).is_some());
                region = marked;
                continue;
            }
            let waits = said.values().any(|s| matches!(s, Ok(None)));
            if !waits || self.clock.now() >= end {
                return Ok(self.judge(mark, &region, said).await);
            }
            self.clock.sleep(LOOK_AGAIN).await;
        }
    }

    async fn find(&self, region: RegionId) -> Result<RegionStatus, PdError> {
        let found = self.pd.find_region(FindRegionRequest { region_id: region.0, ..Default::default() }).await?;
        found.region.ok_or_else(|| PdError::Refused(format!("no region {}", region.0)))
    }

    /// Has the region's leader mark it.
    async fn begin(&self, id: RegionId) -> Result<(u64, Region), PdError> {
        let mut trouble = String::new();
        for attempt in 0..BEGIN_ATTEMPTS {
            if attempt > 0 {
                self.clock.sleep(BEGIN_AGAIN).await;
            }
            let status = self.find(id).await?;
            let region = region_of(&status)?;
            let Some(leader) = status.leader.filter(|l| l.store_id != 0) else {
                trouble = "it has no leader".into();
                continue;
            };
            // Timestamps are given once.
            let mark = self.pd.timestamp().await?.0;
            let request = VerifyRequest { begin: Some(region.epoch.into()), ..self.request(id, mark, false) };
            match self.call(StoreId(leader.store_id), request).await {
                Ok(answer) if answer.refusal.is_empty() => return Ok((mark, region)),
                Ok(answer) => trouble = answer.refusal,
                Err(reason) => trouble = reason,
            }
        }
        Err(PdError::Unavailable(format!("region {} could not be marked: {trouble}", id.0)))
    }

    fn request(&self, region: RegionId, mark: u64, levels: bool) -> VerifyRequest {
        VerifyRequest { cluster_id: self.cluster.0, region_id: region.0, mark, begin: None, levels }
    }

    async fn call(&self, store: StoreId, request: VerifyRequest) -> Result<VerifyResponse, String> {
        if store == self.store.store() {
            return Ok(answer::answer(&self.store, &request).await);
        }
        let address = self.book.address(store).ok_or_else(|| format!("the address of {store} is not known"))?;
        self.rpc.verify(&address, request).await.map_err(|e| e.to_string())
    }

    async fn ask(&self, store: StoreId, region: RegionId, mark: u64, levels: bool) -> Said {
        let answer = self.call(store, self.request(region, mark, levels)).await?;
        match answer.refusal.is_empty() {
            true => Ok(answer.hash),
            false => Err(answer.refusal),
        }
    }

    async fn judge(&self, mark: u64, region: &Region, said: BTreeMap<StoreId, Said>) -> VerifyRegionResponse {
        let replicas = said.iter().map(|(store, said)| verdict(*store, said)).collect::<Vec<_>>();
        let ended = !said.values().any(|s| matches!(s, Ok(None)));
        let hashes: BTreeMap<_, _> = said.into_iter().filter_map(|(store, said)| Some((store, said.ok()??))).collect();
        let mut differences = Vec::new();
        if let Some(usual) = most_alike(&hashes) {
            for store in hashes.keys().filter(|store| !alike(&hashes[*store], &hashes[&usual])) {
                differences
                    .push(self.difference(region.id, mark, (usual, &hashes[&usual]), (*store, &hashes[store])).await);
            }
        }
        let outcome = match (differences.is_empty(), hashes.len() == region.peers.len()) {
            (false, _) => VerifyOutcome::Differs,
            (true, true) => VerifyOutcome::Equal,
            (true, false) => VerifyOutcome::Incomplete,
        };
        VerifyRegionResponse {
            mark,
            outcome: outcome as i32,
            region: Some(region.into()),
            index: hashes.values().next().map_or(0, |h| h.index),
            replicas,
            differences,
            ended,
        }
    }

    /// What one replica holds otherwise than another one.
    async fn difference(
        &self,
        region: RegionId,
        mark: u64,
        (usual, expected): (StoreId, &ReplicaHash),
        (store, other): (StoreId, &ReplicaHash),
    ) -> ReplicaDifference {
        let mut difference = ReplicaDifference { store_id: store.0, than_store_id: usual.0, ..Default::default() };
        if expected.region != other.region {
            difference.region = format!("{:?} instead of {:?}", other.region, expected.region);
        }
        let (a, b) = (self.ask(usual, region, mark, true).await, self.ask(store, region, mark, true).await);
        let trees = a.and_then(answer::tree).and_then(|a| Ok((a, b.and_then(answer::tree)?)));
        difference.ranges = match trees {
            Ok((a, b)) => differences(&a, &b).iter().map(Into::into).collect(),
            // It has gone meanwhile: what is left to say is that they differ.
            Err(_) if expected.root != other.root => other.region.iter().filter_map(|r| r.range.clone()).collect(),
            Err(_) => vec![],
        };
        difference
    }
}

fn region_of(status: &RegionStatus) -> Result<Region, PdError> {
    let region = status.region.clone().unwrap_or_default();
    Region::try_from(region).map_err(|e| PdError::Unavailable(format!("PD's answer: {e}")))
}

fn verdict(store: StoreId, said: &Said) -> ReplicaVerdict {
    let (hash, trouble) = match said {
        Ok(Some(hash)) => (Some(hash), String::new()),
        Ok(None) => (None, "it has not applied the mark, or got past it by a snapshot or a restart".into()),
        Err(reason) => (None, reason.clone()),
    };
    ReplicaVerdict {
        store_id: store.0,
        answered: hash.is_some(),
        trouble,
        records: hash.map_or(0, |h| h.records),
        root: hash.map(|h| h.root.clone()).unwrap_or_default(),
    }
}

fn alike(a: &ReplicaHash, b: &ReplicaHash) -> bool {
    a.root == b.root && a.region == b.region && a.index == b.index
}

/// A store of the largest group that is alike; of equal groups the one with the smallest id.
fn most_alike(hashes: &BTreeMap<StoreId, ReplicaHash>) -> Option<StoreId> {
    let friends = |store: &StoreId| hashes.values().filter(|other| alike(other, &hashes[store])).count();
    hashes.keys().copied().rev().max_by_key(friends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_are_alike_are_what_others_are_measured_by() {
        let hash = |root: &'static str| ReplicaHash { root: root.into(), ..ReplicaHash::default() };
        let of = |roots: &[&'static str]| {
            let hashes = (1..).map(StoreId).zip(roots.iter().map(|root| hash(root))).collect();
            most_alike(&hashes)
        };
        assert_eq!(of(&["a", "b", "b"]), Some(StoreId(2)));
        assert_eq!(of(&["a", "b"]), Some(StoreId(1)));
        assert_eq!(of(&[]), None);
    }
}
