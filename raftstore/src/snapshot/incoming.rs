//! A snapshot on its way in: nothing of it is left unless all of it arrived.

use std::sync::Arc;

use proto::wire;

use super::content::Content;
use crate::{
    effect::{ArrivedSnapshot, Event},
    engine::{Engine, part_name},
    handle::Shared,
};

/// Transfers that a store takes at once; more are refused, and tried again by those who send. They share its disk with
/// everybody's writes.
pub(crate) const RECEIVING_AT_MOST: usize = 4;

/// Takes one snapshot's blocks. Dropped before [`Receiving::finish`] it removes what there is.
pub struct Receiving {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    message: wire::RaftMessage,
    content: Content,
    folder: String,
    part: usize,
    offset: u64,
    hasher: crc32fast::Hasher,
    kept: bool,
}

impl Receiving {
    /// Makes the folder. The place among [`RECEIVING_AT_MOST`] is the caller's to check.
    pub(crate) fn begin(
        shared: Arc<Shared>,
        message: wire::RaftMessage,
        content: Content,
        folder: String,
    ) -> Result<Receiving, String> {
        let engine = shared.engine.clone();
        engine.files().create(&folder).map_err(|e| e.to_string())?;
        let hasher = crc32fast::Hasher::new();
        shared.metrics.received.begin();
        Ok(Receiving { shared, engine, message, content, folder, part: 0, offset: 0, hasher, kept: false })
    }

    /// Takes the next block; an error ends the transfer. Writes to the disk.
    pub fn block(&mut self, block: &wire::SnapshotBlock) -> Result<(), String> {
        let part = self.content.parts.get(self.part).ok_or("there are more blocks than parts")?;
        let end = self.offset + block.data.len() as u64;
        if block.part as usize != self.part || block.offset != self.offset || block.data.is_empty() || end > part.bytes
        {
            let (at, offset) = (block.part, block.offset);
            return Err(format!("a block of part {at} at {offset} instead of part {} at {}", self.part, self.offset));
        }
        let written = self.engine.files().append(&self.folder, &part_name(self.part), &block.data);
        written.map_err(|e| e.to_string())?;
        self.hasher.update(&block.data);
        self.offset = end;
        if self.offset == part.bytes {
            let found = std::mem::take(&mut self.hasher).finalize();
            if found != part.checksum {
                return Err(format!("part {} has checksum {found:08x}, not {:08x}", self.part, part.checksum));
            }
            (self.part, self.offset) = (self.part + 1, 0);
        }
        Ok(())
    }

    /// All blocks were given: makes them durable and tells the replica. Writes to the disk.
    pub fn finish(mut self) -> Result<(), String> {
        if self.part < self.content.parts.len() {
            return Err(format!("it ends in part {} of {}", self.part, self.content.parts.len()));
        }
        self.engine.files().sync(&self.folder).map_err(|e| e.to_string())?;
        let arrived = ArrivedSnapshot { message: self.message.clone(), folder: self.folder.clone() };
        self.shared.inbox.push(Event::SnapshotArrived(Box::new(arrived))).map_err(|_| "the store stops")?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.shared.receiving.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        self.shared.metrics.received.end(self.kept.then_some(self.content.bytes()));
        if !self.kept
            && let Err(error) = self.engine.files().remove(&self.folder)
        {
            tracing::warn!(folder = self.folder, %error, "a broken transfer leaves files until the next start");
        }
    }
}
