//! What is left of a replica that is no peer any more.

use proto::{Cf, Region, RegionId};

use crate::{
    engine::WriteOp,
    keys::{self, Tombstone},
};

/// Records go, a tombstone stays; the data does, too.
pub(crate) fn burial(region: RegionId, tombstone: Tombstone) -> [WriteOp; 4] {
    [
        WriteOp::Put(Cf::Meta, keys::tombstone_key(region), keys::encode_tombstone(tombstone)),
        WriteOp::Delete(Cf::Meta, keys::region_key(region)),
        WriteOp::Delete(Cf::Meta, keys::apply_key(region)),
        WriteOp::Delete(Cf::Meta, keys::merges_key(region)),
    ]
}

/// Data and records go, a tombstone stays; all in one batch. Doing it twice does no harm.
pub(crate) fn destruction(region: &Region, tombstone: Tombstone) -> Vec<WriteOp> {
    let mut ops = burial(region.id, tombstone).to_vec();
    if !region.range.is_empty() {
        ops.extend(clearing(region));
    }
    ops
}

/// The data of a range goes.
pub(super) fn clearing(region: &Region) -> [WriteOp; 2] {
    let (start, end) = (&region.range.start, &region.range.end);
    [Cf::Data, Cf::Lock].map(|cf| WriteOp::DeleteRange(cf, start.clone(), end.clone()))
}
