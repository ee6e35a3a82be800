//! What is left of a replica that is no peer any more.

use proto::{Cf, Region};

use crate::{
    engine::WriteOp,
    keys::{self, Tombstone},
};

/// Data and records go, a tombstone stays; all in one batch. Doing it twice does no harm.
pub(crate) fn destruction(region: &Region, tombstone: Tombstone) -> Vec<WriteOp> {
    let mut ops = vec![
        WriteOp::Put(Cf::Meta, keys::tombstone_key(region.id), keys::encode_tombstone(tombstone)),
        WriteOp::Delete(Cf::Meta, keys::region_key(region.id)),
        WriteOp::Delete(Cf::Meta, keys::apply_key(region.id)),
        WriteOp::Delete(Cf::Meta, keys::merges_key(region.id)),
    ];
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
