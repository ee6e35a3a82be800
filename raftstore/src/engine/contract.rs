//! What every [`Engine`] must do, written once and run against each of them.

use std::sync::Arc;

use bytes::Bytes;
use proto::KeyRange;

use super::{Cf, Cursor, Engine, PART_FAMILIES, Part, Snapshot, WriteBatch, WriteOp, check_parts, part_name};

/// Runs the suite; `make` gives an empty engine each time.
pub(super) fn check(make: &dyn Fn() -> Arc<dyn Engine>) {
    batches_are_atomic_and_ordered(&*make());
    snapshots_stand_still(&*make());
    families_are_apart(&*make());
    ranges_are_deleted(&*make());
    cursors_walk_inside_their_borders(&*make());
    sizes_grow(&*make());
    a_range_travels(&*make(), &*make());
    a_big_range_makes_several_parts(&*make(), &*make());
}

fn put(key: &str, value: &str) -> WriteOp {
    WriteOp::Put(Cf::Data, Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))
}

fn delete(key: &'static str) -> WriteOp {
    WriteOp::Delete(Cf::Data, key.into())
}

fn write(engine: &dyn Engine, ops: Vec<WriteOp>) {
    engine.write(WriteBatch { ops }).unwrap();
}

fn get(snapshot: &dyn Snapshot, key: &str) -> Option<String> {
    snapshot.get(Cf::Data, key.as_bytes()).unwrap().map(|v| String::from_utf8(v.to_vec()).unwrap())
}

/// All keys of a cursor, front to back.
fn keys(cursor: &mut dyn Cursor) -> Vec<String> {
    let mut found = Vec::new();
    let mut on = cursor.seek_to_first().unwrap();
    while on {
        found.push(String::from_utf8(cursor.key().to_vec()).unwrap());
        on = cursor.next().unwrap();
    }
    found
}

fn batches_are_atomic_and_ordered(engine: &dyn Engine) {
    write(engine, vec![put("a", "1"), delete("a"), put("a", "2"), put("b", "1"), delete("b"), delete("none")]);
    let snapshot = engine.snapshot();
    assert_eq!(get(&*snapshot, "a").as_deref(), Some("2"));
    assert_eq!(get(&*snapshot, "b"), None);
    engine.sync().unwrap();
    assert_eq!(get(&*engine.snapshot(), "a").as_deref(), Some("2"));
}

fn snapshots_stand_still(engine: &dyn Engine) {
    write(engine, vec![put("a", "1"), put("c", "1")]);
    let before = engine.snapshot();
    write(engine, vec![put("a", "2"), put("b", "2"), delete("c")]);
    assert_eq!(get(&*before, "a").as_deref(), Some("1"));
    assert_eq!(keys(&mut *before.cursor(Cf::Data, b"", b"")), ["a", "c"]);
    assert_eq!(keys(&mut *engine.snapshot().cursor(Cf::Data, b"", b"")), ["a", "b"]);
}

fn families_are_apart(engine: &dyn Engine) {
    let op = |cf, value: &'static str| WriteOp::Put(cf, "k".into(), value.into());
    write(engine, vec![op(Cf::Data, "d"), op(Cf::Lock, "l"), op(Cf::Meta, "m")]);
    write(engine, vec![WriteOp::Delete(Cf::Lock, "k".into())]);
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(Cf::Data, b"k").unwrap(), Some("d".into()));
    assert_eq!(snapshot.get(Cf::Lock, b"k").unwrap(), None);
    assert_eq!(snapshot.get(Cf::Meta, b"k").unwrap(), Some("m".into()));
}

fn ranges_are_deleted(engine: &dyn Engine) {
    let range = |from: &'static str, to: &'static str| WriteOp::DeleteRange(Cf::Data, from.into(), to.into());
    write(engine, vec![put("a", "1"), put("b", "1"), put("c", "1"), put("d", "1")]);
    write(engine, vec![range("b", "d"), put("c", "2")]);
    assert_eq!(keys(&mut *engine.snapshot().cursor(Cf::Data, b"", b"")), ["a", "c", "d"]);
    write(engine, vec![range("c", "")]);
    assert_eq!(keys(&mut *engine.snapshot().cursor(Cf::Data, b"", b"")), ["a"]);
    write(engine, vec![range("", "")]);
    assert!(keys(&mut *engine.snapshot().cursor(Cf::Data, b"", b"")).is_empty());
}

fn cursors_walk_inside_their_borders(engine: &dyn Engine) {
    write(engine, ["a", "b", "c", "d", "e"].map(|k| put(k, "v")).to_vec());
    let snapshot = engine.snapshot();
    let mut cursor = snapshot.cursor(Cf::Data, b"b", b"e");
    assert_eq!(keys(&mut *cursor), ["b", "c", "d"]);
    assert!(!cursor.next().unwrap(), "it stays off the end");
    assert!(cursor.seek_to_last().unwrap());
    assert_eq!(cursor.key(), b"d");
    assert!(cursor.prev().unwrap() && cursor.prev().unwrap());
    assert_eq!((cursor.key(), cursor.value()), (&b"b"[..], &b"v"[..]));
    assert!(!cursor.prev().unwrap(), "the lower border holds");
    assert!(cursor.seek(b"a").unwrap(), "a seek below the border lands on it");
    assert_eq!(cursor.key(), b"b");
    assert!(cursor.seek(b"bb").unwrap());
    assert_eq!(cursor.key(), b"c");
    assert!(!cursor.seek(b"e").unwrap());
    assert!(cursor.seek_for_prev(b"zz").unwrap());
    assert_eq!(cursor.key(), b"d");
    assert!(cursor.seek_for_prev(b"cc").unwrap());
    assert_eq!(cursor.key(), b"c");
    assert!(!cursor.seek_for_prev(b"a").unwrap());
    let mut empty = snapshot.cursor(Cf::Data, b"x", b"");
    assert!(!empty.seek_to_first().unwrap() && !empty.seek_to_last().unwrap());
}

fn sizes_grow(engine: &dyn Engine) {
    let value = Bytes::from((0..65536u32).flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes()).collect::<Vec<u8>>());
    for i in 0..40u8 {
        let key = Bytes::from(vec![b'k', i]);
        write(engine, vec![WriteOp::Put(Cf::Data, key, value.clone())]);
    }
    assert!(engine.approximate_size(b"k", b"l").unwrap() > engine.approximate_size(b"x", b"").unwrap());
}

/// Carries parts from one engine's files to another's.
pub(crate) fn carry(from: &dyn Engine, to: &dyn Engine, folder: &str, parts: &[Part]) {
    to.files().create(folder).unwrap();
    for at in 0..parts.len() {
        let bytes = from.files().read(folder, &part_name(at), 0, usize::MAX >> 1).unwrap();
        to.files().append(folder, &part_name(at), &bytes).unwrap();
    }
    to.files().sync(folder).unwrap();
}

fn a_range_travels(source: &dyn Engine, target: &dyn Engine) {
    let lock = |key: &'static str| WriteOp::Put(Cf::Lock, key.into(), "locked".into());
    write(source, vec![put("a", "source"), put("b", "source"), put("c", "source"), lock("c"), put("m", "source")]);
    let snapshot = source.snapshot();
    write(source, vec![put("d", "later"), delete("b")]);
    let range = KeyRange::new("b", "m");
    let parts = source.export(&*snapshot, &range, "made").unwrap();
    assert_eq!(parts.iter().map(|p| p.cf).collect::<Vec<_>>(), PART_FAMILIES);
    check_parts(source.files(), "made", &parts).unwrap();
    carry(source, target, "made", &parts);

    write(target, vec![put("a", "target"), put("b", "old"), put("x", "target"), put("k", "old"), lock("l")]);
    let before = target.snapshot();
    for _attempt in 0..2 {
        for cf in PART_FAMILIES {
            let clear = WriteOp::DeleteRange(cf, range.start.clone(), range.end.clone());
            write(target, vec![clear]);
            target.ingest("made", &parts, cf).unwrap();
        }
    }
    let after = target.snapshot();
    assert_eq!(keys(&mut *after.cursor(Cf::Data, b"", b"")), ["a", "b", "c", "x"]);
    assert_eq!(keys(&mut *after.cursor(Cf::Lock, b"", b"")), ["c"]);
    assert_eq!((get(&*after, "a").as_deref(), get(&*after, "b").as_deref()), (Some("target"), Some("source")));
    assert_eq!(get(&*before, "b").as_deref(), Some("old"), "a snapshot stands still");
    write(target, vec![put("b", "newer"), delete("c")]);
    let newest = target.snapshot();
    assert_eq!((get(&*newest, "b").as_deref(), get(&*newest, "c")), (Some("newer"), None), "writes go on top");

    target.files().append("made", &part_name(0), b"!").unwrap();
    assert!(check_parts(target.files(), "made", &parts).is_err(), "one byte too many");
    let none = source.export(&*snapshot, &KeyRange::new("x", "z"), "empty").unwrap();
    assert!(none.is_empty() && source.files().folders().unwrap().contains(&"empty".to_string()));
}

fn a_big_range_makes_several_parts(source: &dyn Engine, target: &dyn Engine) {
    let value = Bytes::from((0..65536u32).flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes()).collect::<Vec<u8>>());
    let all: Vec<_> = (0..40).map(|i| format!("k{i:02}")).collect();
    for key in &all {
        write(source, vec![WriteOp::Put(Cf::Data, key.clone().into(), value.clone())]);
    }
    let parts = source.export(&*source.snapshot(), &KeyRange::default(), "made").unwrap();
    assert_eq!(parts.len(), 2, "ten MiB");
    carry(source, target, "made", &parts);
    target.ingest("made", &parts, Cf::Data).unwrap();
    assert_eq!(keys(&mut *target.snapshot().cursor(Cf::Data, b"", b"")), all);
}
