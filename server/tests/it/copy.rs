//! COPY FROM STDIN and TO STDOUT.

use crate::client::{Port, frame, kinds, query, sync};

#[tokio::test]
async fn rows_go_in_and_come_out() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY, b text)").await;
    session.send(&query("COPY t FROM STDIN")).await;
    let response = session.message().await.expect("an answer");
    assert_eq!((response.kind, &response.body[..]), ('G', &[0, 0, 2, 0, 0, 0, 0][..]));
    // Lines do not end where messages do.
    let data = [frame(b'd', b"1\tone\n2\t"), frame(b'd', b"\\N\n3\ttab\\tulator\n"), frame(b'c', b"")].concat();
    session.send(&data).await;
    let answer = session.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), &answer[0].body[..]), ("CZ", &b"COPY 3\0"[..]));
    let answer = session.query("COPY t TO STDOUT").await;
    assert!(kinds(&answer).starts_with('H') && kinds(&answer).ends_with("cCZ"), "{answer:?}");
    let out: Vec<u8> = answer.iter().filter(|m| m.kind == 'd').flat_map(|m| m.body.clone()).collect();
    assert_eq!(answer.iter().filter(|m| m.kind == 'd').count(), 3, "a message a row");
    assert_eq!(out, b"1\tone\n2\t\\N\n3\ttab\\tulator\n");
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing_and_the_session_goes_on() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY)").await;
    for (end, state) in [(frame(b'f', b"had enough\0"), "57014"), (frame(b'd', b"not a number\n"), "22P02")] {
        session.send(&query("COPY t FROM STDIN")).await;
        session.until('G').await;
        session.send(&[frame(b'd', b"1\n"), end, frame(b'd', b"2\n"), frame(b'c', b"")].concat()).await;
        let answer = session.until_ready().await;
        assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("EZ", state));
    }
    assert!(session.rows("SELECT a FROM t").await.is_empty());
}

#[tokio::test]
async fn other_messages_do_not_belong_into_a_copy() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY)").await;
    session.send(&query("COPY t FROM STDIN")).await;
    session.until('G').await;
    session.send(&[sync(), frame(b'd', b"1\n"), query("SELECT 1")].concat()).await;
    let answer = session.until_closed().await;
    assert_eq!(answer[0].sqlstate(), "08P01");
    assert!(port.session().await.rows("SELECT a FROM t").await.is_empty());
}
