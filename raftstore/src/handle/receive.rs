//! Whether a snapshot is worth its transfer, from what the store's replicas look like now.

use proto::StoreId;

use super::ReplicaStatus;
use crate::snapshot::Content;

/// Whether a replica has all of it already.
pub(super) fn is_here(content: &Content, replicas: &[ReplicaStatus]) -> bool {
    let of_it = |replica: &&ReplicaStatus| replica.view.region.id == content.region.id;
    replicas.iter().find(of_it).is_some_and(|replica| content.position.index <= replica.applied)
}

/// The core asks again when it has arrived; this only spares the transfer.
pub(super) fn check(content: &Content, store: StoreId, replicas: &[ReplicaStatus]) -> Result<(), String> {
    let region = &content.region;
    if region.peer_on(store).is_none() {
        return Err(format!("{store} has no peer in {}", region.id));
    }
    for replica in replicas {
        let here = &replica.view.region;
        if here.id != region.id {
            if !replica.view.merged_away && here.range.intersect(&region.range).is_some() {
                return Err(format!("{} of this store covers keys of {}", here.id, region.id));
            }
            continue;
        }
        crate::region::snapshot_is_newer(content, here, replica.applied)?;
    }
    Ok(())
}
