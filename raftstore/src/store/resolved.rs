//! What leaders here say of the past, and what others say here: see [`crate::region::resolved`].

use std::collections::BTreeMap;

use proto::{Epoch, LogIndex, RegionId, StoreId, Timestamp, wire};

use super::StoreCore;
use crate::{
    clock::Instant,
    region::{
        outbox::{Addressed, Outbox},
        resolved::Mark,
    },
};

/// Regions of one message: some tens of kilobytes.
const REGIONS_AT_MOST: usize = 2048;

impl StoreCore {
    /// Nothing that is proposed to these regions from now on is visible at `ts`: of those that are led here, under a lease,
    /// followers are told how much they must have applied to be read at it.
    pub(super) fn resolve(&mut self, now: Instant, ts: Timestamp, regions: &[(RegionId, Epoch)], out: &mut Outbox) {
        let mut told = BTreeMap::<StoreId, Vec<wire::ResolvedRegion>>::new();
        for (id, epoch) in regions {
            let Some(replica) = self.replicas.get(id) else { continue };
            let Some(index) = replica.resolves(now, *epoch) else { continue };
            out.resolved.push((*id, Mark { epoch: *epoch, ts, index }));
            let region = wire::ResolvedRegion { region_id: id.0, epoch: Some((*epoch).into()), index: index.0 };
            let others = replica.region().peers.iter().filter(|peer| peer.store != self.config.store);
            others.for_each(|peer| told.entry(peer.store).or_default().push(region));
        }
        let message = |(store, regions): (StoreId, &[wire::ResolvedRegion])| -> Addressed {
            let resolved = wire::Resolved { ts: ts.0, regions: regions.to_vec() };
            (store, wire::RaftMessage { resolved: Some(resolved), ..wire::RaftMessage::default() })
        };
        let parts = told.iter().flat_map(|(store, regions)| regions.chunks(REGIONS_AT_MOST).map(|part| (*store, part)));
        out.messages.extend(parts.map(message));
    }

    /// A store that leads regions with replicas here has said so.
    pub(super) fn heard_resolved(&self, resolved: &wire::Resolved, out: &mut Outbox) {
        for region in &resolved.regions {
            let (Some(epoch), ts) = (region.epoch.map(Epoch::from), Timestamp(resolved.ts)) else { continue };
            let mark = Mark { epoch, ts, index: LogIndex(region.index) };
            out.resolved.push((RegionId(region.region_id), mark));
        }
    }
}
