//! The durable queue of accepted writes: what it holds, in memory and as records. PURE.
//!
//! ```text
//! 'N' 'q' ‖ number u64   1u8 ‖ keyspace u32 ‖ length of key u32 ‖ key ‖ stamped write (see `kv::space::lww`)
//! 'N' 't'                the last stamp given, as a stamped deletion: stamps grow over restarts too
//! ```

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv::space::lww::{Stamp, Stamped};
use proto::StoreId;

const VERSION: u8 = 1;
const NUMBERED: [u8; 2] = *b"Nq";

/// Bytes of writes that wait at most: what a region that can't be reached costs in memory. Past it writes are refused.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What an entry costs besides its key and value, roughly.
const ENTRY_BYTES: usize = 128;
/// Keys that are carried into regions at once.
const CARRIED_KEYS: usize = 256;
/// Bytes that are carried at once.
const CARRIED_BYTES: usize = 4 << 20;

/// A key of a namespace.
pub type Place = (u32, Bytes);

/// Key of a queued write's record.
pub fn record_key(number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(10);
    key.put_slice(&NUMBERED);
    key.put_u64(number);
    key.freeze()
}

/// First key of all queued writes' records, and the first key after them.
pub fn record_keys() -> (Bytes, Bytes) {
    (Bytes::from_static(&NUMBERED), Bytes::from_static(b"Nr"))
}

/// Key of the last stamp's record.
pub fn stamp_key() -> Bytes {
    Bytes::from_static(b"Nt")
}

fn encode(place: &Place, write: &Stamped) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u32(place.0);
    // Keys are far shorter than 4 GiB: they were checked.
    out.put_u32(place.1.len() as u32);
    out.put_slice(&place.1);
    out.put_slice(&write.encode());
    out.freeze()
}

fn decode(mut record: Bytes) -> Option<(Place, Stamped)> {
    if record.len() < 9 || record.get_u8() != VERSION {
        return None;
    }
    let (keyspace, length) = (record.get_u32(), record.get_u32() as usize);
    if record.len() < length {
        return None;
    }
    let key = record.split_to(length);
    Some(((keyspace, key), Stamped::decode(record)?))
}

/// A write that waits.
#[derive(Clone, Debug)]
struct Waiting {
    number: u64,
    write: Stamped,
}

/// What waits, by key: of several writes of a key only the last matters.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Place, Waiting>,
    /// Records of writes that were replaced while they waited.
    replaced: Vec<u64>,
    bytes: usize,
    next: u64,
    last: Stamp,
}

/// What is on its way into the regions.
#[derive(Debug, Default)]
pub struct Carried {
    /// Of which namespace.
    pub keyspace: u32,
    /// The writes.
    pub writes: Vec<(Bytes, Stamped)>,
    numbers: Vec<u64>,
}

/// The queue has no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

fn weight(place: &Place, write: &Stamped) -> usize {
    ENTRY_BYTES + place.1.len() + write.value.as_ref().map_or(0, Bytes::len)
}

impl Queue {
    /// Takes a record that was found at boot. `Err`: it does not decode.
    pub fn found(&mut self, key: &[u8], record: Bytes) -> Result<(), String> {
        let number = key.get(2..).and_then(|n| n.try_into().ok()).map(u64::from_be_bytes);
        let decoded = number.zip(decode(record));
        let (number, (place, write)) = decoded.ok_or("a queued write of an eventual namespace does not decode")?;
        self.next = self.next.max(number + 1);
        self.last = self.last.max(write.stamp);
        self.put(place, Waiting { number, write });
        Ok(())
    }

    /// Takes the last stamp's record that was found at boot.
    pub fn found_stamp(&mut self, record: Bytes) -> Result<(), String> {
        let stamp = Stamped::decode(record).ok_or("the last stamp of eventual writes does not decode")?.stamp;
        self.last = self.last.max(stamp);
        Ok(())
    }

    fn put(&mut self, place: Place, waiting: Waiting) {
        let there = self.waiting.get(&place);
        if !waiting.write.beats(there.map(|w| &w.write)) {
            self.replaced.push(waiting.number);
            return;
        }
        self.bytes += weight(&place, &waiting.write);
        if let Some(old) = self.waiting.insert(place.clone(), waiting) {
            self.bytes -= weight(&place, &old.write);
            self.replaced.push(old.number);
        }
    }

    /// Stamps changes of a namespace: the records to make durable, and what [`Queue::accept`] takes then.
    pub fn stamp(
        &mut self,
        keyspace: u32,
        changes: &[(Bytes, Option<Bytes>)],
        wall_ms: u64,
        store: StoreId,
    ) -> Result<Vec<Accepted>, Full> {
        if self.bytes >= QUEUE_BYTES_MAX {
            return Err(Full);
        }
        let stamped = changes.iter().map(|(key, value)| {
            self.last = self.last.next(wall_ms, store);
            let (number, write) = (self.next, Stamped { stamp: self.last, value: value.clone() });
            self.next += 1;
            let place = (keyspace, key.clone());
            Accepted { record: (record_key(number), encode(&place, &write)), place, waiting: Waiting { number, write } }
        });
        Ok(stamped.collect())
    }

    /// Records whose writes were replaced by durable ones while they waited: they may go.
    pub fn replaced(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.replaced).into_iter().map(record_key).collect()
    }

    /// They are durable: from now on they are seen here, and carried.
    pub fn accept(&mut self, accepted: Vec<Accepted>) {
        accepted.into_iter().for_each(|a| self.put(a.place, a.waiting));
    }

    /// What waits for a key.
    pub fn get(&self, place: &Place) -> Option<&Stamped> {
        self.waiting.get(place).map(|w| &w.write)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Some of what waits, of one namespace.
    pub fn some(&self) -> Option<Carried> {
        let keyspace = self.waiting.keys().next()?.0;
        let mut carried = Carried { keyspace, ..Carried::default() };
        let mut bytes = 0;
        let of_one = self.waiting.iter().take_while(|(place, _)| place.0 == keyspace).take(CARRIED_KEYS);
        for (place, waiting) in of_one {
            bytes += weight(place, &waiting.write);
            if bytes > CARRIED_BYTES && !carried.writes.is_empty() {
                break;
            }
            carried.writes.push((place.1.clone(), waiting.write.clone()));
            carried.numbers.push(waiting.number);
        }
        Some(carried)
    }

    /// They are in the regions. Gives the records that may go, and the last stamp's record, which must stand before they do.
    pub fn arrived(&mut self, carried: Carried) -> (Vec<Bytes>, Bytes) {
        for (key, write) in carried.writes {
            let place = (carried.keyspace, key);
            // A newer one may have come meanwhile.
            if self.waiting.get(&place).is_some_and(|w| w.write.stamp == write.stamp) {
                self.waiting.remove(&place);
                self.bytes -= weight(&place, &write);
            }
        }
        let gone = carried.numbers.into_iter().map(record_key).chain(self.replaced());
        (gone.collect(), Stamped { stamp: self.last, value: None }.encode())
    }
}

/// A stamped write that is not durable yet.
#[derive(Debug)]
pub struct Accepted {
    /// Key and value of its record.
    pub record: (Bytes, Bytes),
    place: Place,
    waiting: Waiting,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId(3);

    fn b(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn write(queue: &mut Queue, key: &str, value: &str, wall_ms: u64) -> (Bytes, Bytes) {
        let accepted = queue.stamp(100, &[(b(key), Some(b(value)))], wall_ms, STORE).unwrap();
        let record = accepted[0].record.clone();
        queue.accept(accepted);
        record
    }

    fn value(queue: &Queue, key: &str) -> Option<Bytes> {
        queue.get(&(100, b(key))).and_then(|w| w.value.clone())
    }

    #[test]
    fn the_last_write_of_a_key_is_carried_once() {
        let mut queue = Queue::default();
        write(&mut queue, "a", "1", 10);
        write(&mut queue, "b", "1", 10);
        // The clock went back: stamps do not.
        write(&mut queue, "a", "2", 5);
        assert_eq!(value(&queue, "a"), Some(b("2")));
        let carried = queue.some().unwrap();
        assert_eq!(
            carried.writes.iter().map(|(k, w)| (k.clone(), w.stamp.count)).collect::<Vec<_>>(),
            [(b("a"), 2), (b("b"), 1)]
        );
        write(&mut queue, "a", "3", 11);
        let (gone, _) = queue.arrived(carried);
        assert_eq!(gone.len(), 4, "both that arrived, and two that were replaced");
        assert_eq!((value(&queue, "a"), value(&queue, "b")), (Some(b("3")), None));
        let rest = queue.some().unwrap();
        queue.arrived(rest);
        assert!(queue.is_empty() && queue.some().is_none() && queue.bytes == 0);
    }

    #[test]
    fn it_is_the_same_after_a_restart() {
        let mut queue = Queue::default();
        let records =
            [write(&mut queue, "a", "1", 10), write(&mut queue, "a", "2", 10), write(&mut queue, "b", "", 10)];
        let mut again = Queue::default();
        // In whatever order.
        records.iter().rev().for_each(|(key, record)| again.found(key, record.clone()).unwrap());
        assert_eq!((value(&again, "a"), value(&again, "b")), (Some(b("2")), Some(b(""))));
        assert_eq!((again.next, again.last, again.bytes), (queue.next, queue.last, queue.bytes));
        let carried = again.some().unwrap();
        let (_, stamp) = again.arrived(carried);
        let mut third = Queue::default();
        third.found_stamp(stamp).unwrap();
        assert_eq!(third.last, queue.last);
        assert!(third.found(b"Nq", Bytes::new()).is_err() && third.found_stamp(b("junk")).is_err());
    }

    #[test]
    fn it_has_a_bound() {
        let mut queue = Queue::default();
        let big = "x".repeat(1 << 20);
        let mut taken = 0;
        while queue.stamp(100, &[(b("probe"), None)], 1, STORE).is_ok() {
            write(&mut queue, &taken.to_string(), &big, 1);
            taken += 1;
        }
        assert_eq!(taken, QUEUE_BYTES_MAX >> 20);
        let carried = queue.some().unwrap();
        assert!(carried.writes.len() <= CARRIED_BYTES >> 20);
        queue.arrived(carried);
        assert!(queue.stamp(100, &[(b("probe"), None)], 1, STORE).is_ok());
    }
}
