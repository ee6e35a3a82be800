//! Whether the replicas of a region hold the same.
//!
//! ```text
//!  asker ── mark(id) ──► leader ── log ──► every replica: applies the entry with the mark, takes an engine snapshot there
//!                                             │ off the store loop
//!                                             ▼
//!                                          Tree: hashes of the region's state, by key range ── kept by id
//!  asker ◄──────────── each store's tree (of the root, or all of it) ──────────────────────────────┘
//!  roots differ: [`differences`] names the key ranges
//! ```
//!
//! What is hashed is what the region's log decides: every record of the column families `data` and `lock` inside its
//! range, and the region's own record (range, epoch, peers), which is compared as it is. Not hashed is what belongs to a
//! store alone: apply state, log, tombstones. A mark is an operation like any other, checked for epoch and term when it is
//! applied, and the state is that behind the whole entry, so that all replicas hash the same moment. Were versions ever
//! removed without the log's doing (in compaction), a mark would have to carry the safe point below which they do not
//! count; old versions are collected through the log.
//!
//! A store hashes one region after another and lets few wait; it keeps the latest trees in memory. A replica that was down,
//! or took a snapshot over the mark, has no tree: the asker names it, and asks again later. Nobody repairs: which replica
//! is right is not decided here.

mod kept;
pub mod tree;

use std::sync::Arc;

use proto::{Cf, LogIndex, Region};

use crate::{
    engine::{EngineError, Snapshot},
    log::Position,
};

pub(crate) use kept::Kept;
pub use tree::{Tree, differences};

/// Marks of a store that wait for their hashing: each holds an engine snapshot, which keeps old files alive.
pub const WAITING_AT_MOST: usize = 4;

/// A region at a mark, to be hashed.
pub struct Marked {
    /// Names the mark.
    pub id: u64,
    /// As of the entry.
    pub region: Arc<Region>,
    /// The entry.
    pub position: Position,
    /// The state behind it.
    pub snapshot: Arc<dyn Snapshot>,
}

/// What a replica has to say to a mark.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Names the mark.
    pub id: u64,
    /// The region as of the entry.
    pub region: Arc<Region>,
    /// The entry.
    pub index: LogIndex,
    /// The state; the reason when it was not hashed.
    pub tree: Result<Arc<Tree>, String>,
}

impl Marked {
    /// Reads the whole region: never on the store loop.
    pub fn hash(self) -> Verified {
        let tree = tree_of(&*self.snapshot, &self.region).map(Arc::new).map_err(|e| e.to_string());
        self.with(tree)
    }

    /// It is not hashed; why.
    pub fn refuse(self, why: &str) -> Verified {
        self.with(Err(why.into()))
    }

    fn with(self, tree: Result<Arc<Tree>, String>) -> Verified {
        Verified { id: self.id, region: self.region, index: self.position.index, tree }
    }
}

/// The hashes of a region's records, of both families, in the order of their keys.
pub fn tree_of(snapshot: &dyn Snapshot, region: &Region) -> Result<Tree, EngineError> {
    let range = &region.range;
    let mut tree = tree::Builder::new(range.clone());
    let mut cursors = [Cf::Data, Cf::Lock].map(|cf| (cf, snapshot.cursor(cf, &range.start, &range.end)));
    let mut on = [false; 2];
    for (on, (_, cursor)) in on.iter_mut().zip(&mut cursors) {
        *on = cursor.seek_to_first()?;
    }
    loop {
        let next = match on {
            [true, true] => usize::from(cursors[0].1.key() > cursors[1].1.key()),
            [true, false] => 0,
            [false, true] => 1,
            [false, false] => return Ok(tree.finish()),
        };
        let (cf, cursor) = &mut cursors[next];
        tree.add(*cf, cursor.key(), cursor.value());
        on[next] = cursor.next()?;
    }
}
