//! A node that is about to stop hands its leaderships over, so that nobody waits for an election.

use std::{collections::BTreeMap, time::Duration};

use kv::Clock;
use proto::{RegionId, StoreId};
use raftstore::{Instant, ReplicaView, Role, StoreHandle};

/// How often it looks whether its leaderships are gone.
const POLL: Duration = Duration::from_millis(20);
/// A transfer that has not succeeded after this long is tried with the next peer: the first may be down.
const TRY_NEXT_AFTER: Duration = Duration::from_millis(700);

/// Asks another store to lead each region this one leads; returns when it leads none, or after `limit`.
pub async fn hand_over(store: &StoreHandle, clock: &dyn Clock, limit: Duration) {
    let until = clock.now() + limit;
    let mut tried = BTreeMap::new();
    loop {
        let replicas = store.statuses();
        // A region without another peer has nobody to take it.
        let led = replicas.iter().map(|r| &*r.view).filter(|v| v.role == Role::Leader && v.region.peers.len() > 1);
        let mut left = 0;
        for view in led {
            left += 1;
            if let Some(to) = next_to_try(&mut tried, view, clock.now()) {
                store.transfer(view.region.id, to);
            }
        }
        if left == 0 || clock.now() >= until {
            tracing::info!(store = store.store().0, left, "leaderships are handed over");
            return;
        }
        clock.sleep(POLL).await;
    }
}

/// Whom to ask now to lead the region: each other peer in turn.
fn next_to_try(tried: &mut BTreeMap<RegionId, (Instant, usize)>, view: &ReplicaView, now: Instant) -> Option<StoreId> {
    let others: Vec<_> = view.region.peers.iter().map(|p| p.store).filter(|s| *s != view.peer.store).collect();
    let turn = match tried.get(&view.region.id) {
        Some((at, _)) if now.since(*at) < TRY_NEXT_AFTER => return None,
        Some((_, turn)) => turn + 1,
        None => 0,
    };
    tried.insert(view.region.id, (now, turn));
    others.get(turn % others.len().max(1)).copied()
}
