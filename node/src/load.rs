//! What the regions led here have to do: requests and bytes a second, and which keys they are about.
//!
//! Counted where requests come in, read once a heartbeat. Of the keys a few are remembered, so that a region which is too
//! busy can be split where its load divides.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use proto::{
    RegionId,
    wire::{KvRequest, KvResponse, RegionLoad, kv_request::Body as Asked, kv_response::Body as Answered},
};
use raftstore::Instant;

/// Load is an average over at least this, and half of it is older: a burst of a second splits nothing.
const WINDOW: Duration = Duration::from_secs(5);
/// Keys remembered of a region: enough to find the middle to within a few percent. They are spread over [`WINDOW`], about.
const SAMPLES: usize = 64;
/// A region without a request for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Regions counted at most: beyond, one is as idle as the other.
const REGIONS_MAX: usize = 100_000;
/// Requests of different regions seldom wait for one another.
const SHARDS: usize = 16;

#[derive(Default)]
struct Meter {
    since: Option<Instant>,
    touched: Option<Instant>,
    counted: RegionLoad,
    average: RegionLoad,
    /// Keys of some late requests, the oldest first.
    samples: VecDeque<Bytes>,
    /// Requests with a key.
    keyed: u64,
}

impl Meter {
    /// Remembers one of so many keys, in no order that could be that of the requests.
    fn sample(&mut self, key: Bytes) {
        let rate = self.average.reads_per_s + self.average.writes_per_s;
        let one_of = (rate * WINDOW.as_secs() / SAMPLES as u64).max(1);
        self.keyed = self.keyed.wrapping_add(1);
        // Fibonacci hashing: what is multiplied by 2^64 / the golden ratio is scattered evenly.
        if !(self.keyed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).is_multiple_of(one_of) {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(key);
    }
}

/// The meters of a store.
pub struct LoadMeter {
    shards: [Mutex<BTreeMap<RegionId, Meter>>; SHARDS],
}

impl Default for LoadMeter {
    fn default() -> Self {
        LoadMeter { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

/// A request as the meter sees it, taken before the request is handed on.
pub struct Counted {
    region: RegionId,
    write: bool,
    key: Option<Bytes>,
    bytes: u64,
}

impl Counted {
    /// Looks at a request.
    pub fn of(request: &KvRequest) -> Option<Counted> {
        let region = RegionId(request.header.as_ref()?.region_id);
        let (write, key) = match request.body.as_ref()? {
            Asked::Get(r) => (false, r.keys.first()),
            Asked::LockRows(r) => (false, r.keys.first()),
            Asked::Scan(r) => (false, r.range.as_ref().map(|r| &r.start_key)),
            Asked::Prewrite(r) => (true, r.mutations.first().map(|m| &m.key)),
            Asked::Commit(r) => (true, r.keys.first()),
            _ => return None,
        };
        let bytes = if write { request.encoded_len() as u64 } else { 0 };
        Some(Counted { region, write, key: key.cloned(), bytes })
    }
}

impl LoadMeter {
    fn shard(&self, region: RegionId) -> &Mutex<BTreeMap<RegionId, Meter>> {
        &self.shards[(region.0 % SHARDS as u64) as usize]
    }

    /// A request was answered. `chunk_bytes`: of a scan's result that is not in the response.
    pub fn count(&self, now: Instant, request: Counted, response: &KvResponse, chunk_bytes: usize) {
        if response.region_error.is_some() {
            return;
        }
        let mut shard = self.shard(request.region).lock();
        if shard.len() >= REGIONS_MAX / SHARDS && !shard.contains_key(&request.region) {
            return;
        }
        let meter = shard.entry(request.region).or_default();
        meter.since.get_or_insert(now);
        meter.touched = Some(now);
        let counted = &mut meter.counted;
        if request.write {
            counted.writes_per_s += 1;
            counted.write_bytes_per_s += request.bytes;
        } else {
            counted.reads_per_s += 1;
            counted.read_bytes_per_s += read_bytes(response) + chunk_bytes as u64;
        }
        // An empty start of a range says nothing about where load is.
        if let Some(key) = request.key.filter(|key| !key.is_empty()) {
            meter.sample(key);
        }
    }

    /// A region's load, per second.
    pub fn load(&self, now: Instant, region: RegionId) -> Option<RegionLoad> {
        let mut shard = self.shard(region).lock();
        let meter = shard.get_mut(&region)?;
        if meter.touched.is_some_and(|at| now.since(at) > FORGET_AFTER) {
            shard.remove(&region);
            return None;
        }
        let since = meter.since?;
        let elapsed = now.since(since);
        if elapsed >= WINDOW {
            let (counted, old) = (std::mem::take(&mut meter.counted), meter.average);
            let blend =
                |new: u64, old: u64| (new as f64 / elapsed.as_secs_f64() / 2.0 + old as f64 / 2.0).round() as u64;
            meter.average = RegionLoad {
                reads_per_s: blend(counted.reads_per_s, old.reads_per_s),
                writes_per_s: blend(counted.writes_per_s, old.writes_per_s),
                read_bytes_per_s: blend(counted.read_bytes_per_s, old.read_bytes_per_s),
                write_bytes_per_s: blend(counted.write_bytes_per_s, old.write_bytes_per_s),
            };
            meter.since = Some(now);
        }
        (meter.average != RegionLoad::default()).then_some(meter.average)
    }

    /// Keys that the region was asked about lately, the oldest first.
    pub fn samples(&self, region: RegionId) -> Vec<Bytes> {
        self.shard(region).lock().get(&region).map(|m| m.samples.iter().cloned().collect()).unwrap_or_default()
    }
}

fn read_bytes(response: &KvResponse) -> u64 {
    let pairs = match &response.body {
        Some(Answered::Get(r)) => &r.pairs,
        Some(Answered::Scan(r)) => &r.pairs,
        Some(Answered::LockRows(r)) => return r.rows.iter().map(|row| row.value.len() as u64).sum(),
        _ => return 0,
    };
    pairs.iter().map(|p| (p.key.len() + p.value.len()) as u64).sum()
}

#[cfg(test)]
mod tests {
    use proto::wire::{GetRequest, RegionError, RequestHeader};

    use super::*;

    fn get(region: u64, key: &'static str) -> KvRequest {
        let header = RequestHeader { region_id: region, ..RequestHeader::default() };
        let body = Asked::Get(GetRequest { keys: vec![key.into()], read_ts: 1, ..GetRequest::default() });
        KvRequest { header: Some(header), body: Some(body) }
    }

    #[test]
    fn load_is_an_average_that_follows_slowly_and_is_forgotten() {
        let meter = LoadMeter::default();
        let at = |s: u64| Instant(Duration::from_secs(s));
        for n in 0..100 {
            let request = Counted::of(&get(7, if n % 2 == 0 { "a" } else { "b" })).expect("counts");
            meter.count(at(10), request, &KvResponse::default(), 0);
        }
        assert_eq!(meter.load(at(12), RegionId(7)), None, "a burst is no load yet");
        assert_eq!(meter.load(at(15), RegionId(7)).map(|l| l.reads_per_s), Some(10));
        assert_eq!(meter.load(at(20), RegionId(7)).map(|l| l.reads_per_s), Some(5));
        assert_eq!(meter.samples(RegionId(7)).len(), SAMPLES);
        assert_eq!(meter.load(at(100), RegionId(7)), None);
        assert!(meter.samples(RegionId(7)).is_empty());
    }

    #[test]
    fn samples_are_spread_over_the_window() {
        let meter = LoadMeter::default();
        let at = |ms: u64| Instant(Duration::from_millis(ms));
        let names: Vec<String> = (0..40_000).map(|n| format!("{n:05}")).collect();
        for (n, name) in names.iter().enumerate() {
            // A thousand a second; four kinds of requests take turns.
            let key = Bytes::from(format!("{}{name}", n % 4));
            let body = Asked::Get(GetRequest { keys: vec![key], read_ts: 1, ..GetRequest::default() });
            let request = KvRequest { body: Some(body), ..get(7, "") };
            meter.count(at(n as u64), Counted::of(&request).expect("counts"), &KvResponse::default(), 0);
            meter.load(at(n as u64), RegionId(7));
        }
        let samples = meter.samples(RegionId(7));
        let since = |key: &Bytes| std::str::from_utf8(&key[1..]).unwrap().parse::<u64>().unwrap();
        let span = since(&samples[SAMPLES - 1]) - since(&samples[0]);
        assert!((3_000..8_000).contains(&span), "{span} ms");
        for kind in b"0123" {
            let of_kind = samples.iter().filter(|key| key[0] == *kind).count();
            assert!((SAMPLES / 8..SAMPLES / 2).contains(&of_kind), "{of_kind} of kind {kind}");
        }
    }

    #[test]
    fn what_a_region_refused_is_no_load() {
        let meter = LoadMeter::default();
        let refused =
            KvResponse { region_error: Some(RegionError::region_not_found(RegionId(7))), ..KvResponse::default() };
        let request = Counted::of(&get(7, "a")).expect("counts");
        meter.count(Instant(Duration::ZERO), request, &refused, 0);
        assert!(meter.samples(RegionId(7)).is_empty());
    }
}
