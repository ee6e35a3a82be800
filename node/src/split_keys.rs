//! Where a region is cut. PURE.
//!
//! By size: a walk over its records hands every key with its bytes to a [`Cutter`], which cuts into parts of like size. A
//! border of a table or index is preferred when it is nearly as good:
//!
//! ```text
//!   bytes     0 ──────────── P ──────────── 2P ──────────── 3P
//!   borders          t5            t6  │              t7
//!   cuts                           t6 (within P/4)   the key at 2P …
//! ```
//!
//! By load: near the median of sampled keys, if the keys on both sides are nearly as many, of those sampled earlier and of those
//! sampled later: where rows are appended the middle of today has everything behind it tomorrow.

use bytes::Bytes;
use proto::{KeyRange, keyspace};

/// How far from where it should be a border may lie, in parts of a part.
const BORDER_TOLERANCE: u64 = 4;
/// Fewer samples than this say nothing.
const SAMPLES_MIN: usize = 16;
/// What part of the samples may be on the wrong side of the middle of either half of them.
const UNEVEN_PART: usize = 6;

/// Cuts a region into parts of like size.
#[derive(Debug)]
pub struct Cutter {
    range: KeyRange,
    /// Bytes of a part.
    part: u64,
    /// At most so many cuts.
    most: usize,
    seen: u64,
    cuts: Vec<Bytes>,
    /// Where the next cut should be, and the best border near it: (distance, key).
    border: Option<(u64, Bytes)>,
    /// The first key at or behind where the cut should be.
    at: Option<Bytes>,
    last: Option<Bytes>,
}

impl Cutter {
    /// For a region of about `total` bytes into `parts` parts.
    pub fn new(range: KeyRange, total: u64, parts: usize) -> Self {
        let part = (total / parts.max(1) as u64).max(1);
        Cutter { range, part, most: parts.saturating_sub(1), seen: 0, cuts: vec![], border: None, at: None, last: None }
    }

    fn target(&self) -> u64 {
        self.part * (self.cuts.len() as u64 + 1)
    }

    /// The next record in key order. False: no more are needed.
    pub fn push(&mut self, key: &[u8], bytes: u64) -> bool {
        if self.cuts.len() >= self.most {
            return false;
        }
        let tolerance = self.part / BORDER_TOLERANCE;
        let new_key = self.last.as_deref() != Some(key);
        if new_key {
            if let Some(border) = self.border_before(key) {
                let distance = self.seen.abs_diff(self.target());
                if distance <= tolerance && self.border.as_ref().is_none_or(|(best, _)| distance < *best) {
                    self.border = Some((distance, border));
                }
            }
            if self.at.is_none() && self.seen >= self.target() {
                self.at = Some(Bytes::copy_from_slice(key));
            }
            self.last = Some(Bytes::copy_from_slice(key));
        }
        self.seen += bytes;
        if self.seen >= self.target() + tolerance {
            self.cut();
        }
        self.cuts.len() < self.most
    }

    /// All cuts, in order, inside the region.
    pub fn finish(mut self) -> Vec<Bytes> {
        if self.cuts.len() < self.most {
            self.cut();
        }
        self.cuts
    }

    fn cut(&mut self) {
        let border = self.border.take().map(|(_, key)| key);
        let Some(key) = border.or(self.at.take()) else { return };
        self.at = None;
        let behind = self.cuts.last().unwrap_or(&self.range.start);
        if key > *behind && self.range.contains(&key) {
            self.cuts.push(key);
        }
    }

    /// The border of a table or index that lies between the last key and this one, if one does.
    fn border_before(&self, key: &[u8]) -> Option<Bytes> {
        let (space, table, index, _) = keyspace::split_prefix(key)?;
        let before = self.last.as_deref().and_then(keyspace::split_prefix);
        let border = match before {
            Some((s, t, i, _)) if (s, t, i) == (space, table, index) => return None,
            Some((s, t, ..)) if (s, t) == (space, table) => keyspace::index_prefix(space, table, index),
            Some(_) => keyspace::table_prefix(space, table),
            None => return None,
        };
        Some(border)
    }
}

/// Where sampled load (oldest first) divides in two; `None`: it does not, or there are too few samples.
pub fn by_load(range: &KeyRange, mut samples: Vec<Bytes>) -> Option<Bytes> {
    samples.retain(|key| range.contains(key));
    let count = samples.len();
    if count < SAMPLES_MIN {
        return None;
    }
    let later = &mut samples.split_off(count / 2);
    let times = [&mut samples, later].map(|half| {
        half.sort_unstable();
        &*half
    });
    // How far a key is from the middle of either time; each distinct key is a candidate.
    let uneven = |key: &Bytes| {
        let of = |half: &Vec<Bytes>| half.partition_point(|k| k < key).abs_diff(half.len() / 2);
        times.map(of).into_iter().max()
    };
    let keys = times.into_iter().flatten().filter(|key| **key > range.start);
    let best = keys.min_by_key(|key| (uneven(key), *key))?;
    // A third of a half is tolerated: one key alone that takes most of the load can't be divided, nor can one that wanders.
    uneven(best).is_some_and(|uneven| uneven * UNEVEN_PART <= count).then(|| best.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> KeyRange {
        keyspace::keyspace_range(keyspace::SQL_KEYSPACE)
    }
    fn key(table: u32, row: u32) -> Vec<u8> {
        [&keyspace::index_prefix(1, table, 0)[..], &row.to_be_bytes()].concat()
    }
    fn cuts(rows: &[(u32, u32)], parts: usize) -> Vec<Bytes> {
        let mut cutter = Cutter::new(range(), rows.len() as u64 * 10, parts);
        rows.iter().all(|(table, row)| cutter.push(&key(*table, *row), 10));
        cutter.finish()
    }

    #[test]
    fn rows_are_cut_in_the_middle() {
        let rows: Vec<_> = (0..100).map(|row| (100, row)).collect();
        assert_eq!(cuts(&rows, 2), [key(100, 50)]);
        assert_eq!(cuts(&rows, 4), [key(100, 25), key(100, 50), key(100, 75)]);
        assert_eq!(cuts(&rows[..1], 2), Vec::<Bytes>::new(), "one row can't be divided");
    }

    #[test]
    fn a_tables_border_nearby_is_preferred() {
        let rows: Vec<_> = (0..45).map(|row| (100, row)).chain((0..55).map(|row| (107, row))).collect();
        assert_eq!(cuts(&rows, 2), [keyspace::table_prefix(1, 107)]);
        let far: Vec<_> = (0..10).map(|row| (100, row)).chain((0..90).map(|row| (107, row))).collect();
        assert_eq!(cuts(&far, 2), [key(107, 40)]);
    }

    #[test]
    fn versions_of_a_key_stay_together() {
        let mut cutter = Cutter::new(range(), 1_000, 2);
        cutter.push(&key(100, 1), 10);
        for _ in 0..98 {
            cutter.push(&key(100, 2), 10);
        }
        cutter.push(&key(100, 3), 10);
        assert_eq!(cutter.finish(), [key(100, 3)]);
    }

    #[test]
    fn load_divides_at_the_median_unless_one_key_has_it_all() {
        let samples = |rows: &[u32]| rows.iter().map(|row| Bytes::from(key(100, *row))).collect::<Vec<_>>();
        let even: Vec<_> = (0..64).map(|n| n * 37 % 64).collect();
        assert_eq!(by_load(&range(), samples(&even)), Some(key(100, 32).into()));
        assert_eq!(by_load(&range(), samples(&even[..8])), None, "too few");
        let mut hot = vec![7; 60];
        hot.extend([1, 2, 9, 10]);
        assert_eq!(by_load(&range(), samples(&hot)), None);
        let appended = |n: u32| if n.is_multiple_of(2) { key(107, n) } else { key(100, n % 16) };
        let wandering: Vec<Bytes> = (0..64).map(|n| key(107, n).into()).collect();
        assert_eq!(by_load(&range(), wandering), None, "all of it will be behind any key");
        let both: Vec<Bytes> = (0..64).map(|n| appended(n).into()).collect();
        assert_eq!(by_load(&range(), both), Some(key(107, 0).into()), "what wanders, from what does not");
        let other = KeyRange::new(key(200, 0), "");
        assert_eq!(by_load(&other, samples(&even)), None, "samples of before the last split");
    }

    proptest! {
        #[test]
        fn cuts_are_in_order_inside_and_no_more_than_asked(
            sizes in proptest::collection::vec((0..3u32, 1..1_000u64), 0..200),
            parts in 1..10usize,
        ) {
            let total: u64 = sizes.iter().map(|(_, size)| size).sum();
            let mut cutter = Cutter::new(range(), total, parts);
            let mut at = (100, 0);
            for (table, size) in &sizes {
                at = if *table == 0 { (at.0 + 1, 0) } else { (at.0, at.1 + 1) };
                cutter.push(&key(at.0, at.1), *size);
            }
            let cuts = cutter.finish();
            prop_assert!(cuts.len() < parts.max(1));
            prop_assert!(cuts.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(cuts.iter().all(|cut| range().contains(cut) && *cut > range().start));
        }
    }
}
