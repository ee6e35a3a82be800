//! The replicas of regions, compared at marks in their logs while everything else happens.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures::future::select;
use proto::{KeyRange, StoreId};
use raftstore::{
    StoreHandle,
    verify::{Verified, differences},
};
use rand::Rng;

use super::{Changes, Led, PATIENCE};
use crate::runtime::Owner;

/// Between two marks: long enough for regions to fall asleep in between.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Between looks for the trees of a mark.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long they are looked for; replicas that are down or behind have none.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// What came of comparing regions.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Regions of which every replica has answered.
    pub compared: usize,
    /// Where replicas differ.
    pub found: Vec<String>,
}

impl Changes {
    /// Compares regions at random until `until`; the run fails when two replicas differ.
    pub async fn verify(self, until: Duration) {
        let mut rng = self.world.rng("verify");
        while self.world.now() < until {
            self.world.sleep(Owner::Harness, rng.random_range(Duration::ZERO..PAUSE_MAX)).await;
            let led = self.led();
            if led.is_empty() {
                continue;
            }
            let (led, id) = (&led[rng.random_range(0..led.len())], rng.random());
            let said = self.verify_one(led, id).await;
            if said.len() > 1 {
                self.world.count("replicas compared", said.len() as u64);
            }
            if let Some(reason) = compare(&said) {
                self.world.fail(reason);
            }
        }
    }

    /// Every region that is led, once.
    pub async fn verify_all(&self) -> Comparison {
        let mut comparison = Comparison::default();
        for (n, led) in self.led().iter().enumerate() {
            // Other ids than those of the last call.
            let said = self.verify_one(led, self.world.now().as_micros() as u64 + n as u64).await;
            comparison.compared += usize::from(said.len() == led.region.peers.len());
            comparison.found.extend(compare(&said));
        }
        comparison
    }

    /// What the stores have to say to a mark in a region's log.
    async fn verify_one(&self, led: &Led, id: u64) -> BTreeMap<StoreId, Verified> {
        let (store, target): (StoreHandle, _) = (led.store.clone(), led.target());
        let marking = async move { drop(store.mark(&target, id).await) };
        // Whatever came of it: replicas may have seen it.
        let _ = select(pin!(marking), pin!(self.world.sleep(Owner::Harness, PATIENCE))).await;
        let end = self.world.now() + LOOK_FOR;
        let mut said = BTreeMap::new();
        loop {
            let up = (0..self.stores.nodes()).filter_map(|node| self.stores.store(node));
            said.extend(up.filter_map(|store| Some((store.store(), store.verified(led.region.id, id)?))));
            if said.len() >= led.region.peers.len() || self.world.now() >= end {
                return said;
            }
            self.world.sleep(Owner::Harness, LOOK_AGAIN).await;
        }
    }
}

/// What is wrong, if anything is.
fn compare(said: &BTreeMap<StoreId, Verified>) -> Option<String> {
    let (first_store, first) = said.first_key_value()?;
    for (store, other) in said {
        let id = first.region.id;
        if other.index != first.index || other.region != first.region {
            let (a, b) = ((first.index, &first.region), (other.index, &other.region));
            return Some(format!("{id}: one mark is {a:?} on {first_store} and {b:?} on {store}"));
        }
        let (Ok(a), Ok(b)) = (&first.tree, &other.tree) else { continue };
        let ranges: Vec<KeyRange> = differences(a, b);
        if !ranges.is_empty() {
            let index = first.index;
            return Some(format!("{id} differs between {first_store} and {store} at {index:?} in {ranges:?}"));
        }
    }
    None
}
