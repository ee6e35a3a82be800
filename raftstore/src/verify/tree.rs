//! A Merkle tree over a range of records, whose shape depends on nothing but the keys.
//!
//! ```text
//!  8 bits  │            a ──────────────────────────────────────── │     a node of a level begins at every key whose
//!  6 bits  │            a ──────────────── m ───────────────────── │     checksum ends in so many zero bits
//!  4 bits  │            a ─── d ── g ───── m ── q ─────────── w ── │     (and at the range's start)
//!  records │ (border)   a b c d e f g h …  m …  q …           w …  │
//! ```
//!
//! Replicas that hold nearly the same have nearly the same nodes: a record that differs changes the nodes above it, one
//! that is missing may melt two nodes into one, and everything else is equal, borders and hashes. So two trees are compared
//! from the top, and only what differs is looked at more closely. The lowest levels of a large region are left out
//! ([`NODES_KEPT`]): ranges get wider, a tree stays small.

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::{Cf, KeyRange};
use sha2::{Digest, Sha256};

/// Levels are so many bits apart: a node has 4 children on average.
const STEP_BITS: u32 = 2;
/// Of the lowest level: 16 records a node on average.
const LOWEST_BITS: u32 = 4;
/// A checksum has no more.
const HIGHEST_BITS: u32 = 32;
/// A level with more nodes is dropped, unless it is the only one.
pub const NODES_KEPT: usize = 4096;

/// SHA-256.
pub type Hash = [u8; 32];

/// A part of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its first key; it ends where the next node of its level begins.
    pub start: Bytes,
    /// Of all records in it.
    pub hash: Hash,
}

/// The nodes of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// How many bits of a key's checksum are zero where a node begins.
    pub bits: u32,
    /// In key order; the first one begins with the range.
    pub nodes: Vec<Node>,
}

/// The hashes of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// What it covers.
    pub range: KeyRange,
    /// How many records.
    pub records: u64,
    /// Of everything.
    pub root: Hash,
    /// From the largest nodes to the smallest.
    pub levels: Vec<Level>,
}

/// Takes records in key order.
pub struct Builder {
    range: KeyRange,
    records: u64,
    open: Sha256,
    start: Bytes,
    last: Vec<u8>,
    nodes: Vec<Node>,
}

fn zero_bits(key: &[u8]) -> u32 {
    crc32fast::hash(key).trailing_zeros()
}

fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

impl Builder {
    /// Of a range without records.
    pub fn new(range: KeyRange) -> Builder {
        let start = range.start.clone();
        Builder { range, records: 0, open: Sha256::new(), start, last: Vec::new(), nodes: Vec::new() }
    }

    /// The next record; keys never go back, and one key may come once a family.
    pub fn add(&mut self, cf: Cf, key: &[u8], value: &[u8]) {
        assert!(self.records == 0 || *self.last <= *key, "records come in key order");
        if *self.last != *key && *key != *self.start && zero_bits(key) >= LOWEST_BITS {
            self.close(Bytes::copy_from_slice(key));
        }
        self.open.update([cf as u8]);
        field(&mut self.open, key);
        field(&mut self.open, value);
        self.records += 1;
        self.last.clear();
        self.last.extend_from_slice(key);
    }

    fn close(&mut self, next: Bytes) {
        let hash = std::mem::replace(&mut self.open, Sha256::new()).finalize().into();
        self.nodes.push(Node { start: std::mem::replace(&mut self.start, next), hash });
    }

    /// All records were added.
    pub fn finish(mut self) -> Tree {
        self.close(Bytes::new());
        let mut levels = vec![Level { bits: LOWEST_BITS, nodes: self.nodes }];
        while let Some(above) = levels.last().filter(|l| l.nodes.len() > 1).and_then(above) {
            levels.push(above);
        }
        levels.reverse();
        let top = levels.first().expect("there is the lowest");
        let root = if let [only] = &*top.nodes { only.hash } else { over(&top.nodes) };
        let small = levels.iter().take_while(|l| l.nodes.len() <= NODES_KEPT).count();
        levels.truncate(small.max(1));
        Tree { range: self.range, records: self.records, root, levels }
    }
}

fn over(children: &[Node]) -> Hash {
    let mut hash = Sha256::new();
    for child in children {
        field(&mut hash, &child.start);
        hash.update(child.hash);
    }
    hash.finalize().into()
}

/// The next level; `None` above the last one.
fn above(level: &Level) -> Option<Level> {
    let bits = level.bits + STEP_BITS;
    if bits > HIGHEST_BITS {
        return None;
    }
    let mut nodes: Vec<Node> = Vec::new();
    let mut rest = &level.nodes[..];
    while let Some((first, others)) = rest.split_first() {
        let count = 1 + others.iter().take_while(|n| zero_bits(&n.start) < bits).count();
        let (children, next) = rest.split_at(count);
        nodes.push(Node { start: first.start.clone(), hash: over(children) });
        rest = next;
    }
    Some(Level { bits, nodes })
}

/// Where two trees of one range differ: as narrow as both can tell, in key order, not touching each other.
pub fn differences(a: &Tree, b: &Tree) -> Vec<KeyRange> {
    if a.range != b.range {
        return vec![KeyRange::new(a.range.start.clone().min(b.range.start.clone()), later_end(&a.range, &b.range))];
    }
    if a.root == b.root {
        return vec![];
    }
    let mut ranges = vec![a.range.clone()];
    for level in &a.levels {
        let Some(other) = b.levels.iter().find(|l| l.bits == level.bits) else { continue };
        ranges = ranges.iter().flat_map(|range| within(range, &level.nodes, &other.nodes)).collect();
    }
    joined(ranges)
}

fn later_end(a: &KeyRange, b: &KeyRange) -> Bytes {
    if a.end.is_empty() || b.end.is_empty() { Bytes::new() } else { a.end.clone().max(b.end.clone()) }
}

/// The parts of `range` in which the nodes are not the same: between borders that both have.
fn within(range: &KeyRange, a: &[Node], b: &[Node]) -> Vec<KeyRange> {
    let (a, b) = (inside(range, a), inside(range, b));
    let starts: BTreeSet<_> = b.iter().map(|n| &n.start).collect();
    let common: Vec<_> = a.iter().map(|n| &n.start).filter(|s| starts.contains(s)).collect();
    let mut different = Vec::new();
    for (at, &start) in common.iter().enumerate() {
        let end = common.get(at + 1).map_or(&range.end, |end| end);
        let part = KeyRange::new(start.clone(), end.clone());
        // Borders are equal or not like everything else.
        if inside(&part, a) != inside(&part, b) {
            different.push(part);
        }
    }
    different
}

/// The nodes that begin in a range.
fn inside<'a>(range: &KeyRange, nodes: &'a [Node]) -> &'a [Node] {
    let first = nodes.partition_point(|n| n.start < range.start);
    let end = if range.end.is_empty() { nodes.len() } else { nodes.partition_point(|n| n.start < range.end) };
    &nodes[first..end]
}

fn joined(ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    let mut joined: Vec<KeyRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Records = BTreeMap<(Vec<u8>, u8), Vec<u8>>;

    fn tree(records: &Records) -> Tree {
        let mut builder = Builder::new(KeyRange::new("a", "z"));
        for ((key, cf), value) in records {
            builder.add(if *cf == 0 { Cf::Data } else { Cf::Lock }, key, value);
        }
        builder.finish()
    }

    fn many(count: u32) -> Records {
        (0..count).map(|n| ((format!("k{n:06}").into_bytes(), 0), n.to_be_bytes().to_vec())).collect()
    }

    fn touches(ranges: &[KeyRange], key: &[u8]) -> bool {
        ranges.iter().any(|range| range.contains(key))
    }

    #[test]
    fn equal_records_have_equal_trees_and_a_changed_one_is_found_narrowly() {
        let records = many(20_000);
        let whole = tree(&records);
        assert_eq!((tree(&records), differences(&whole, &whole.clone()).len()), (whole.clone(), 0));
        assert!(whole.levels.len() > 4 && whole.levels.iter().all(|l| l.nodes.len() <= NODES_KEPT));
        let mut other = records.clone();
        other.insert((b"k012345".to_vec(), 0), b"?".to_vec());
        let found = differences(&whole, &tree(&other));
        assert!(found.len() == 1 && touches(&found, b"k012345"), "{found:?}");
        let inside = records.keys().filter(|(key, _)| touches(&found, key)).count();
        assert!(inside < 200, "{inside} records are named for one that differs");
        // Somewhere else as well, and a lock where there is none.
        other.remove(&(b"k000777".to_vec(), 0));
        other.insert((b"k019000".to_vec(), 1), b"lock".to_vec());
        let found = differences(&whole, &tree(&other));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!([&b"k000777"[..], b"k012345", b"k019000"].iter().all(|key| touches(&found, key)));
    }

    #[test]
    fn nothing_at_all_has_a_tree_and_other_ranges_differ_as_a_whole() {
        let (empty, one) = (tree(&Records::new()), tree(&many(1)));
        assert_eq!(differences(&empty, &one), [KeyRange::new("a", "z")]);
        let wider = Builder::new(KeyRange::new("a", "")).finish();
        assert_eq!(differences(&empty, &wider), [KeyRange::new("a", "")]);
    }

    proptest! {
        #[test]
        fn every_record_that_differs_lies_in_a_named_range(
            keys in prop::collection::btree_map((prop::collection::vec(b'a'..b'e', 1..6), 0u8..2), 0u8..3, 0..200),
            changes in prop::collection::btree_map((prop::collection::vec(b'a'..b'e', 1..6), 0u8..2), 0u8..3, 0..8),
        ) {
            let before: Records = keys.iter().map(|(k, v)| (k.clone(), vec![*v])).collect();
            let mut after = before.clone();
            for (key, value) in &changes {
                if *value == 0 { after.remove(key); } else { after.insert(key.clone(), vec![*value]); }
            }
            let found = differences(&tree(&before), &tree(&after));
            prop_assert_eq!(found.is_empty(), before == after);
            for key in before.keys().chain(after.keys()).filter(|k| before.get(k) != after.get(k)) {
                prop_assert!(touches(&found, &key.0), "{:?} is not in {:?}", key, found);
            }
        }
    }
}
