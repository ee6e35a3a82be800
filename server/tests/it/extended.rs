//! The extended protocol.

use crate::client::{Port, bind, close, describe, execute, flush, kinds, parse, sync};

#[tokio::test]
async fn a_whole_round() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let round = [
        parse("s", "SELECT $1::int4 + 1"),
        describe('S', "s"),
        bind("", "s", &[Some("41")], false),
        describe('P', ""),
        execute("", 0),
        sync(),
    ];
    session.send(&round.concat()).await;
    let answer = session.until_ready().await;
    assert_eq!(kinds(&answer), "1tT2TDCZ");
    assert_eq!(answer[1].body, [0, 1, 0, 0, 0, 23], "one parameter, int4");
    assert_eq!(answer[5].columns(), [Some("42".to_owned())]);
}

#[tokio::test]
async fn results_come_in_the_format_asked_for() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let round = [parse("", "SELECT 258::int4"), bind("", "", &[], true), describe('P', ""), execute("", 0), sync()];
    session.send(&round.concat()).await;
    let answer = session.until_ready().await;
    assert_eq!(answer[3].body, [0, 1, 0, 0, 0, 4, 0, 0, 1, 2]);
    assert_eq!(answer[2].body.last(), Some(&1), "the portal's description says binary");
}

#[tokio::test]
async fn portals_stop_at_their_row_limit_and_go_on() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("BEGIN").await;
    let start = [parse("", "SELECT * FROM generate_series(1, 5)"), bind("p", "", &[], false), execute("p", 2), sync()];
    session.send(&start.concat()).await;
    assert_eq!(kinds(&session.until_ready().await), "12DDsZ");
    session.send(&[execute("p", 2), sync()].concat()).await;
    assert_eq!(kinds(&session.until_ready().await), "DDsZ");
    session.send(&[execute("p", 2), sync()].concat()).await;
    assert_eq!(kinds(&session.until_ready().await), "DCZ");
    session.run("COMMIT").await;
    session.send(&[execute("p", 2), sync()].concat()).await;
    let answer = session.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("EZ", "34000"), "gone with its transaction");
}

#[tokio::test]
async fn after_an_error_everything_up_to_sync_is_skipped() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY)").await;
    let insert = |n: &str| {
        [parse("", &format!("INSERT INTO t VALUES ({n})")), bind("", "", &[], false), execute("", 0)].concat()
    };
    session.send(&[insert("1"), insert("nonsense"), insert("2"), sync(), insert("3"), sync()].concat()).await;
    let answer = session.until_ready().await;
    assert_eq!(kinds(&answer), "12CEZ");
    assert_eq!(answer[3].sqlstate(), "42703");
    assert_eq!(kinds(&session.until_ready().await), "12CZ");
    assert_eq!(
        session.rows("SELECT a FROM t ORDER BY a").await,
        [[Some("3".to_owned())]],
        "the first round rolled back"
    );
}

#[tokio::test]
async fn flush_brings_answers_without_ending_the_round() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.send(&[parse("s", "SELECT 1"), describe('S', "s"), flush()].concat()).await;
    assert_eq!(kinds(&session.until('T').await), "1tT");
    session.send(&[bind("", "s", &[], false), execute("", 0), flush()].concat()).await;
    assert_eq!(kinds(&session.until('C').await), "2DC");
    session.send(&[close('S', "s"), close('P', "never was"), sync()].concat()).await;
    assert_eq!(kinds(&session.until_ready().await), "33Z");
    session.send(&[describe('S', "s"), sync()].concat()).await;
    assert_eq!(session.until_ready().await[0].sqlstate(), "26000");
}

#[tokio::test]
async fn what_has_no_result_says_so() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY)").await;
    let round = [
        parse("", "INSERT INTO t VALUES ($1)"),
        describe('S', ""),
        bind("", "", &[Some("1")], false),
        describe('P', ""),
        execute("", 0),
        parse("e", ""),
        bind("", "e", &[], false),
        execute("", 0),
        sync(),
    ];
    session.send(&round.concat()).await;
    let answer = session.until_ready().await;
    assert_eq!(kinds(&answer), "1tn2nC12IZ");
    assert_eq!(&answer[5].body[..], b"INSERT 0 1\0");
}

#[tokio::test]
async fn nulls_and_types_of_parameters() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY, b text)").await;
    let insert = |a, b| [bind("", "i", &[a, b], false), execute("", 0)].concat();
    let rows = [insert(Some("1"), None), insert(Some("2"), Some("zwei"))].concat();
    session.send(&[parse("i", "INSERT INTO t VALUES ($1, $2)"), rows, sync()].concat()).await;
    assert_eq!(kinds(&session.until_ready().await), "12C2CZ");
    let found = session.rows("SELECT b FROM t ORDER BY a").await;
    assert_eq!(found, [[None], [Some("zwei".to_owned())]]);
    session.send(&[bind("", "i", &[Some("no number"), None], false), sync()].concat()).await;
    assert_eq!(session.until_ready().await[0].sqlstate(), "22P02");
    session.send(&[bind("", "i", &[Some("3")], false), sync()].concat()).await;
    assert_eq!(session.until_ready().await[0].sqlstate(), "08P01", "a parameter is missing");
}
