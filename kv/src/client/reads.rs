//! What a serializable transaction has read: keys and ranges, whether anything was there or not. PURE.
//!
//! Kept as few spans that lie apart. Neighbours that touch become one. Too many of them become fewer: neighbours in one index
//! of one table are joined with what lies between, which can only make a conflict out of what was none.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::{KeyRange, keyspace};

/// Spans of one transaction at most: all of them travel with its commit.
const MAX_SPANS: usize = 1000;
/// And bytes of their borders.
const MAX_BYTES: usize = 256 << 10;

/// Spans of keys, apart from each other.
#[derive(Debug, Default)]
pub(crate) struct ReadSpans {
    /// Start to end; an empty end is no end.
    spans: BTreeMap<Bytes, Bytes>,
    bytes: usize,
}

impl ReadSpans {
    /// One key was looked up.
    pub(crate) fn add_key(&mut self, key: &[u8]) {
        // No key is a prefix of another one.
        self.add(&KeyRange::new(Bytes::copy_from_slice(key), successor(key)));
    }

    /// A range was scanned.
    pub(crate) fn add(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start.clone(), range.end.clone());
        // The one before it may reach into it.
        if let Some((before, its_end)) = self.spans.range::<Bytes, _>(..=&start).next_back() {
            if its_end.is_empty() || (!end.is_empty() && *its_end >= end) {
                return;
            }
            if *its_end >= start {
                start = before.clone();
            }
        }
        // Those that begin in it, or where it ends.
        while let Some((next, its_end)) = self.spans.range::<Bytes, _>(&start..).next() {
            if !end.is_empty() && *next > end {
                break;
            }
            if !end.is_empty() && (its_end.is_empty() || *its_end > end) {
                end = its_end.clone();
            }
            let next = next.clone();
            self.remove(&next);
        }
        self.insert(start, end);
        if self.spans.len() > MAX_SPANS || self.bytes > MAX_BYTES {
            self.join();
        }
    }

    /// The transaction writes this key: the prewrite sees that it has not changed. What was looked up and then written needs no
    /// other look.
    pub(crate) fn forget(&mut self, key: &Bytes) {
        let Some((start, end)) = self.spans.range::<Bytes, _>(..=key).next_back() else { return };
        let (start, end, next) = (start.clone(), end.clone(), successor(key));
        if start == key {
            self.remove(&start);
            if end != next {
                self.insert(next, end);
            }
        } else if end == next && !end.is_empty() {
            self.remove(&start);
            self.insert(start, key.clone());
        }
    }

    /// All of them, in order.
    pub(crate) fn take(&mut self) -> Vec<KeyRange> {
        let ReadSpans { spans, .. } = std::mem::take(self);
        spans.into_iter().map(|(start, end)| KeyRange { start, end }).collect()
    }

    fn insert(&mut self, start: Bytes, end: Bytes) {
        self.bytes += start.len() + end.len();
        self.spans.insert(start, end);
    }

    fn remove(&mut self, start: &Bytes) {
        if let Some(end) = self.spans.remove(start) {
            self.bytes -= start.len() + end.len();
        }
    }

    /// Makes half as many of them, or one for each index if that is more.
    fn join(&mut self) {
        let spans = self.take();
        let index = |key: &Bytes| keyspace::split_prefix(key).map(|(space, table, index, _)| (space, table, index));
        let mut open: Option<(KeyRange, bool)> = None;
        for span in spans {
            open = match open.take() {
                Some((before, false)) if index(&before.start) == index(&span.start) => {
                    Some((KeyRange { start: before.start, end: span.end }, true))
                }
                Some((before, _)) => {
                    self.insert(before.start, before.end);
                    Some((span, false))
                }
                None => Some((span, false)),
            };
        }
        if let Some((last, _)) = open {
            self.insert(last.start, last.end);
        }
    }
}

/// The first key that does not begin with `key`; empty when there is none.
fn successor(key: &[u8]) -> Bytes {
    let Some(last) = key.iter().rposition(|&byte| byte != 0xff) else { return Bytes::new() };
    let mut next = key[..=last].to_vec();
    next[last] += 1;
    next.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(reads: &mut ReadSpans) -> String {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let spans = reads.take();
        spans.iter().map(|span| format!("{}-{}", text(&span.start), text(&span.end))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn neighbours_become_one() {
        let mut reads = ReadSpans::default();
        for key in ["c", "a", "b", "x"] {
            reads.add_key(key.as_bytes());
        }
        reads.add(&KeyRange::new("f", "h"));
        reads.add(&KeyRange::new("g", "k"));
        reads.add(&KeyRange::new("y", ""));
        reads.add(&KeyRange::new("z", "zz"));
        assert_eq!(shown(&mut reads), "a-d f-k x-");
        assert_eq!(shown(&mut reads), "");
    }

    #[test]
    fn too_many_are_joined_within_their_index() {
        let mut reads = ReadSpans::default();
        for table in [200, 201] {
            for row in 0..900_u32 {
                let mut key = keyspace::index_prefix(1, table, 0).to_vec();
                key.extend_from_slice(&(row * 2).to_be_bytes());
                reads.add_key(&key);
            }
        }
        let spans = reads.take();
        assert!(spans.len() <= MAX_SPANS && spans.len() > 2);
        let border = keyspace::index_prefix(1, 201, 0);
        assert!(spans.iter().all(|span| span.end <= border || span.start >= border), "none reaches into both tables");
    }

    #[test]
    fn what_is_written_is_left_to_the_prewrite_unless_that_would_make_more_of_them() {
        let mut reads = ReadSpans::default();
        for key in ["a", "b", "c", "f", "x"] {
            reads.add_key(key.as_bytes());
        }
        reads.add(&KeyRange::new("k", "n"));
        for key in ["b", "f", "l", "m", "x", "y"] {
            reads.forget(&Bytes::from_static(key.as_bytes()));
        }
        assert_eq!(shown(&mut reads), "a-d k-m");
        assert_eq!(reads.bytes, 0);
    }

    #[test]
    fn the_key_behind_the_last_one_is_none() {
        assert_eq!((successor(b"a\xff"), successor(b"\xff")), (Bytes::from_static(b"b"), Bytes::new()));
    }

    proptest! {
        #[test]
        fn what_was_read_is_covered_and_nothing_else(ranges in proptest::collection::vec((0u8..40, 0u8..12), 0..40)) {
            let mut reads = ReadSpans::default();
            let mut covered = [false; 256];
            for (start, len) in ranges {
                reads.add(&KeyRange::new(vec![start], vec![start + len]));
                covered[start as usize..(start + len) as usize].fill(true);
            }
            let spans = reads.take();
            for (byte, covered) in (0..=255u8).zip(covered) {
                prop_assert_eq!(spans.iter().filter(|span| span.contains(&[byte])).count(), usize::from(covered));
            }
            prop_assert!(spans.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
