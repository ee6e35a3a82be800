//! The simple protocol.

use crate::client::{Port, kinds};

#[tokio::test]
async fn a_query_is_fields_rows_tag_ready() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let answer = session.query("SELECT 1 AS a, NULL::text AS b").await;
    assert_eq!(kinds(&answer), "TDCZ");
    assert_eq!(answer[1].columns(), [Some("1".to_owned()), None]);
    assert_eq!((&answer[2].body[..], &answer[3].body[..]), (&b"SELECT 1\0"[..], &b"I"[..]));
    assert_eq!(kinds(&session.query("").await), "IZ");
    assert_eq!(kinds(&session.query(" ;; ").await), "IZ");
}

#[tokio::test]
async fn several_statements_share_a_transaction() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE t (a int PRIMARY KEY)").await;
    let answer =
        session.query("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); SELECT 1/0; INSERT INTO t VALUES (3)").await;
    assert_eq!(answer.last().map(|m| &m.body[..]), Some(&b"I"[..]));
    assert_eq!(answer.iter().find(|m| m.kind == 'E').expect("an error").sqlstate(), "22012");
    assert!(session.rows("SELECT a FROM t").await.is_empty(), "all or nothing");
    let answer = session.query("INSERT INTO t VALUES (1); SELECT a FROM t; DELETE FROM t").await;
    assert_eq!(kinds(&answer), "CTDCCZ");
}

#[tokio::test]
async fn the_status_follows_the_transaction() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let mut status = Vec::new();
    for sql in ["BEGIN", "SELECT 1", "SELECT nonsense", "SELECT 1", "ROLLBACK", "SELECT 1"] {
        let answer = session.query(sql).await;
        let error = answer.iter().find(|m| m.kind == 'E').map(|m| m.sqlstate());
        status.push((char::from(answer.last().unwrap().body[0]), error));
    }
    let expected = [('T', None), ('T', None), ('E', Some("42703")), ('E', Some("25P02")), ('I', None), ('I', None)];
    assert_eq!(status, expected.map(|(s, e)| (s, e.map(str::to_owned))));
}

#[tokio::test]
async fn errors_point_into_the_statement() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let answer = session.query("SELECT 'é' FRM t WHERE").await;
    assert_eq!((answer[0].sqlstate().as_str(), answer[0].field('P').as_deref()), ("42601", Some("16")), "{answer:?}");
}

#[tokio::test]
async fn a_long_result_arrives_whole() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let rows = session.rows("SELECT * FROM generate_series(1, 20000)").await;
    assert_eq!(rows.len(), 20_000);
    assert_eq!(rows[19_999][0].as_deref(), Some("20000"));
}
