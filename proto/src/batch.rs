//! What one proposal changes: an ordered list of operations on a region's keys.
//!
//! The wire form is `wire::Op`; this module only gives it a name and short constructors.

use bytes::Bytes;

use crate::wire::{self, op::Kind};

pub use crate::wire::Cf;

/// Mutations of one proposal, applied in order and all at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// In the order they apply.
    pub ops: Vec<wire::Op>,
}

impl Batch {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    /// Sets a key.
    pub fn put(&mut self, cf: Cf, key: Bytes, value: Bytes) {
        self.push(Kind::Put(wire::Put { cf: cf as i32, key, value }));
    }
    /// Removes a key; a missing one is fine.
    pub fn delete(&mut self, cf: Cf, key: Bytes) {
        self.push(Kind::Delete(wire::Delete { cf: cf as i32, key }));
    }
    /// Removes all keys of `start..end`; both borders must be inside the region.
    pub fn delete_range(&mut self, cf: Cf, start_key: Bytes, end_key: Bytes) {
        self.push(Kind::DeleteRange(wire::DeleteRange { cf: cf as i32, start_key, end_key }));
    }
    /// `to := prefix ‖ from[offset..]`, and removes `from`: a value that went through the log once is not
    /// sent through it again at commit.
    pub fn move_value(&mut self, from: (Cf, Bytes), offset: u64, to: (Cf, Bytes), prefix: Bytes) {
        self.push(Kind::Move(wire::Move {
            from_cf: from.0 as i32,
            from_key: from.1,
            offset,
            to_cf: to.0 as i32,
            to_key: to.1,
            prefix,
        }));
    }
    /// Has every replica hash the region as it is at this entry; `id` names the mark.
    pub fn mark(&mut self, id: u64) {
        self.push(Kind::Mark(wire::Mark { id }));
    }
    fn push(&mut self, kind: Kind) {
        self.ops.push(wire::Op { kind: Some(kind) });
    }
}
