//! A range of the state as files ("parts"): every file holds records of one column family in key order.

use bytes::Bytes;
use proto::KeyRange;

use super::{Cf, EngineError, Files, Snapshot};

/// The families that hold users' records, in the order in which they are exported and ingested.
pub const PART_FAMILIES: [Cf; 2] = [Cf::Data, Cf::Lock];
/// A part is closed when its records have this many bytes: small enough that a broken transfer costs seconds, big
/// enough that a region makes few files for the engine to look into.
const PART_BYTES_ABOUT: usize = 8 << 20;
/// Read at a time to compute a checksum.
const BLOCK_BYTES: usize = 1 << 20;

/// One file of an exported range; its name follows from its place in the list ([`part_name`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whose records.
    pub cf: Cf,
    /// Size of the file.
    pub bytes: u64,
    /// CRC-32 of the file.
    pub checksum: u32,
}

/// The name of the part at a place in the list of parts, from 0.
pub fn part_name(at: usize) -> String {
    format!("{at:04}.sst")
}

/// Writes one part.
pub(super) trait PartWriter {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    fn finish(self: Box<Self>) -> Result<(), EngineError>;
}

/// A part that was made, or why it could not be.
type Opened<'w> = Result<Box<dyn PartWriter + 'w>, EngineError>;

/// Writes what `snapshot` shows of `range` into parts that `open` makes by name.
pub(super) fn export<'w>(
    files: &dyn Files,
    snapshot: &dyn Snapshot,
    range: &KeyRange,
    folder: &str,
    open: &mut dyn FnMut(&str) -> Opened<'w>,
) -> Result<Vec<Part>, EngineError> {
    let mut parts = Vec::new();
    for cf in PART_FAMILIES {
        let mut cursor = snapshot.cursor(cf, &range.start, &range.end);
        let mut on = cursor.seek_to_first()?;
        while on {
            let name = part_name(parts.len());
            let (mut writer, mut bytes) = (open(&name)?, 0);
            while on && bytes < PART_BYTES_ABOUT {
                let (key, value) = (cursor.key(), cursor.value());
                writer.put(key, value)?;
                bytes += key.len() + value.len();
                on = cursor.next()?;
            }
            writer.finish()?;
            let (bytes, checksum) = measure(files, folder, &name)?;
            parts.push(Part { cf, bytes, checksum });
        }
    }
    Ok(parts)
}

/// Size and checksum of a file.
fn measure(files: &dyn Files, folder: &str, file: &str) -> Result<(u64, u32), EngineError> {
    let (mut hasher, mut offset) = (crc32fast::Hasher::new(), 0);
    loop {
        let block: Bytes = files.read(folder, file, offset, BLOCK_BYTES)?;
        if block.is_empty() {
            return Ok((offset, hasher.finalize()));
        }
        hasher.update(&block);
        offset += block.len() as u64;
    }
}

/// Whether a folder holds exactly these parts, byte for byte.
pub fn check_parts(files: &dyn Files, folder: &str, parts: &[Part]) -> Result<(), EngineError> {
    for (at, part) in parts.iter().enumerate() {
        let found = measure(files, folder, &part_name(at))?;
        if found != (part.bytes, part.checksum) {
            let why = format!("part {at} of {folder} has {} bytes and checksum {:08x}", found.0, found.1);
            return Err(EngineError::Corrupt(format!("{why}, not {} and {:08x}", part.bytes, part.checksum)));
        }
    }
    Ok(())
}
