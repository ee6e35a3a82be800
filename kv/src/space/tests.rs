//! Strong namespaces over a kv layer in this process, cut into regions.

use futures::future::join_all;

use super::*;
use crate::local::Local;

/// Regions are cut in the middle of what the first namespace will be.
fn local() -> (Local, Spaces) {
    let borders = [b"k2".as_slice(), b"k5"].map(|key| keys::encode(1000, key));
    let local = Local::start(&borders, None);
    let spaces = Spaces::new(local.client.clone());
    (local, spaces)
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn strong(spaces: &Spaces) -> Namespace {
    let made = spaces.create("things", Mode::Strong).await.unwrap();
    assert_eq!(made.keyspace, 1000, "the borders of the tests' regions are inside");
    made
}

#[tokio::test]
async fn names_are_made_once() {
    let (local, spaces) = local();
    let made = strong(&spaces).await;
    assert_eq!(spaces.create("things", Mode::Strong).await, Ok(made.clone()));
    assert_eq!(spaces.create("things", Mode::Eventual).await, Err(SpaceError::OtherMode("things".into())));
    assert_eq!(spaces.find("nothing").await, Err(SpaceError::NoNamespace("nothing".into())));
    assert!(matches!(spaces.find("No!").await, Err(SpaceError::Bad(_))));
    let elsewhere = Spaces::new(local.client.clone());
    assert_eq!(elsewhere.find("things").await, Ok(made.clone()));
    spaces.create("events", Mode::Eventual).await.unwrap();
    let names: Vec<_> = elsewhere.list().await.unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["events", "things"]);
    // At the same time, of one name: one of them wins, both get it.
    let both = join_all([0, 1].map(|_| spaces.create("twice", Mode::Strong))).await;
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn what_is_written_is_read_over_regions() {
    let (_local, spaces) = local();
    let space = strong(&spaces).await;
    let changes: Vec<_> = (0..8).map(|i| (b(&format!("k{i}")), Some(b(&format!("v{i}"))))).collect();
    spaces.write(&space, &changes).await.unwrap();
    let asked = [b("k7"), b("none"), b("k1")];
    assert_eq!(spaces.get(&space, &asked).await.unwrap(), [Some(b("v7")), None, Some(b("v1"))]);
    spaces.write(&space, &[(b("k1"), None), (b("k7"), Some(b("")))]).await.unwrap();
    assert_eq!(spaces.get(&space, &asked).await.unwrap(), [Some(b("")), None, None]);
    assert_eq!(spaces.get(&space, &asked[2..]).await.unwrap(), [None]);
}

#[tokio::test]
async fn pages_are_of_one_snapshot_in_both_directions() {
    let (_local, spaces) = local();
    let space = strong(&spaces).await;
    let changes: Vec<_> = (0..8).map(|i| (b(&format!("k{i}")), Some(b("v")))).collect();
    spaces.write(&space, &changes).await.unwrap();
    let mut query = ScanQuery { start: b("k1"), end: b("k7"), limit: 2, ..ScanQuery::default() };
    for (reverse, all) in [(false, ["k1", "k2", "k3", "k4", "k5", "k6"]), (true, ["k6", "k5", "k4", "k3", "k2", "k1"])]
    {
        (query.reverse, query.token) = (reverse, Bytes::new());
        let mut seen = Vec::new();
        loop {
            let page = spaces.scan(&space, &query).await.unwrap();
            assert!(page.rows.len() <= 2);
            seen.extend(page.rows.into_iter().map(|(key, _)| key));
            // Nobody sees this before the next scan begins.
            spaces.write(&space, &[(b("k35"), Some(b("late")))]).await.unwrap();
            query.token = page.token;
            if query.token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, all.map(b));
        spaces.write(&space, &[(b("k35"), None)]).await.unwrap();
    }
    let whole = spaces.scan(&space, &ScanQuery { keys_only: true, ..ScanQuery::default() }).await.unwrap();
    assert_eq!((whole.rows.len(), whole.token.is_empty(), whole.rows[0].1.is_empty()), (8, true, true));
    let nothing = ScanQuery { start: b("x"), end: b("a"), ..ScanQuery::default() };
    assert_eq!(spaces.scan(&space, &nothing).await.unwrap(), SpacePage::default());
}

#[tokio::test]
async fn a_swap_happens_only_on_what_was_expected() {
    let (_local, spaces) = local();
    let space = strong(&spaces).await;
    let (key, one, two) = (b("k1"), b("1"), b("2"));
    assert_eq!(spaces.compare_and_swap(&space, &key, Some(&one), Some(&two)).await.unwrap(), Err(None));
    assert_eq!(spaces.compare_and_swap(&space, &key, None, Some(&one)).await.unwrap(), Ok(()));
    assert_eq!(spaces.compare_and_swap(&space, &key, None, Some(&two)).await.unwrap(), Err(Some(one.clone())));
    assert_eq!(spaces.compare_and_swap(&space, &key, Some(&one), None).await.unwrap(), Ok(()));
    assert_eq!(spaces.get(&space, &[key]).await.unwrap(), [None]);
}

#[tokio::test]
async fn swaps_under_contention_count_exactly() {
    let (_local, spaces) = local();
    let space = strong(&spaces).await;
    let key = b("counter");
    let one = async || {
        for _ in 0..25 {
            let mut there = None;
            loop {
                let count: u64 = there.as_ref().map_or(0, |v: &Bytes| String::from_utf8_lossy(v).parse().unwrap());
                let next = b(&(count + 1).to_string());
                match spaces.compare_and_swap(&space, &key, there.as_ref(), Some(&next)).await.unwrap() {
                    Ok(()) => break,
                    Err(found) => there = found,
                }
            }
        }
    };
    join_all((0..4).map(|_| one())).await;
    assert_eq!(spaces.get(&space, &[key]).await.unwrap(), [Some(b("100"))]);
}

#[tokio::test]
async fn late_writes_of_an_eventual_namespace_have_no_effect() {
    let (_local, spaces) = local();
    let space = spaces.create("events", Mode::Eventual).await.unwrap();
    let stamp = |wall_ms| lww::Stamp { wall_ms, count: 0, store: proto::StoreId(1) };
    let write = |wall_ms, value: Option<&str>| Stamped { stamp: stamp(wall_ms), value: value.map(b) };
    spaces.merge(space.keyspace, &[(b("a"), write(5, Some("new"))), (b("b"), write(5, None))]).await.unwrap();
    spaces.merge(space.keyspace, &[(b("a"), write(4, Some("old"))), (b("b"), write(4, Some("old")))]).await.unwrap();
    let stored = spaces.stored(&space, &[b("a"), b("b")]).await.unwrap();
    let values: Vec<_> = stored.into_iter().map(|r| Stamped::decode(r.unwrap()).unwrap().value).collect();
    assert_eq!(values, [Some(b("new")), None]);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let (_local, spaces) = local();
    let space = strong(&spaces).await;
    let bad = |e: SpaceError| match e {
        SpaceError::Bad(why) => why,
        other => panic!("{other}"),
    };
    let write = async |changes: &[Change]| bad(spaces.write(&space, changes).await.unwrap_err());
    assert!(write(&[]).await.contains("1 to 1000 keys"));
    assert!(write(&[(b(""), None)]).await.contains("1 to 2048 bytes"));
    assert!(write(&[(Bytes::from(vec![0; KEY_BYTES_MAX + 1]), None)]).await.contains("2049"));
    assert!(write(&[(b("a"), Some(Bytes::from(vec![0; VALUE_BYTES_MAX + 1])))]).await.contains("1048577"));
    assert!(write(&[(b("a"), None), (b("a"), None)]).await.contains("twice"));
    let big = |i: u8| (Bytes::from(vec![i]), Some(Bytes::from(vec![0; VALUE_BYTES_MAX])));
    assert!(write(&(0..9).map(big).collect::<Vec<_>>()).await.contains("8388608 bytes"));
    assert!(bad(spaces.get(&space, &[]).await.unwrap_err()).contains("1 to 1000 keys"));
    let scan = async |query: ScanQuery| bad(spaces.scan(&space, &query).await.unwrap_err());
    assert!(scan(ScanQuery { token: b("junk"), ..ScanQuery::default() }).await.contains("token"));
    assert!(scan(ScanQuery { start: Bytes::from(vec![1; 3000]), ..ScanQuery::default() }).await.contains("border"));
    let other = Token { keyspace: 7, read_ts: Timestamp(1), reverse: false, border: keys::encode(7, b"a") };
    assert!(scan(ScanQuery { token: other.encode(), ..ScanQuery::default() }).await.contains("token"));
    // All zeros double when they are escaped.
    spaces.write(&space, &[(Bytes::from(vec![0; KEY_BYTES_MAX]), Some(b("v")))]).await.unwrap();
}
