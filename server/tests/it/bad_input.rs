//! What clients should not send. Each gets a clear answer; a session beside them does not notice.

use server::pgwire::DoorConfig;
use std::time::Duration;

use crate::client::{Port, frame, kinds, parse, query, sync};

/// Sends bytes to a fresh socket; what the server says before it hangs up.
async fn answer_to(port: &Port, bytes: &[u8]) -> Vec<crate::client::Message> {
    let mut client = port.socket().await;
    client.send(bytes).await;
    client.until_closed().await
}

#[tokio::test]
async fn wrong_first_packets_are_refused_with_a_reason() {
    let port = Port::open().await;
    let mut witness = port.session().await;
    let long = [&11_000u32.to_be_bytes()[..], &[0; 8]].concat();
    let version2 = [&8u32.to_be_bytes()[..], &[0, 2, 0, 0]].concat();
    let unterminated = [&16u32.to_be_bytes()[..], &[0, 3, 0, 0], b"user\0ann"].concat();
    for packet in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), long, version2, unterminated, vec![0; 8]] {
        let answer = answer_to(&port, &packet).await;
        assert_eq!(kinds(&answer), "E", "{packet:?}: {answer:?}");
        assert_eq!((answer[0].sqlstate().as_str(), answer[0].field('S').as_deref()), ("08P01", Some("FATAL")));
    }
    let mut nameless = port.socket().await;
    nameless.startup(&[("database", "postgres")]).await;
    assert_eq!(nameless.until_closed().await[0].sqlstate(), "28000");
    let mut elsewhere = port.socket().await;
    elsewhere.startup(&[("user", "postgres"), ("database", "elsewhere")]).await;
    assert_eq!(elsewhere.until_closed().await[0].sqlstate(), "3D000");
    assert_eq!(witness.rows("SELECT 1").await, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn random_bytes_end_only_their_connection() {
    let port = Port::open().await;
    let mut witness = port.session().await;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| byte()).collect()
    };
    for length in [1, 7, 64, 1000, 20_000] {
        let mut client = port.socket().await;
        client.send(&noise(length)).await;
        drop(client);
        let mut session = port.session().await;
        session.send(&noise(length)).await;
        drop(session);
    }
    assert_eq!(witness.rows("SELECT 1").await, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn frames_that_cannot_be_end_the_session() {
    let port = Port::open().await;
    for (bytes, state) in [
        (&b"\x01\0\0\0\x04"[..], "08P01"),
        (b"Q\0\0\0\x02", "08P01"),
        (b"Q\x7f\xff\xff\xff", "54000"),
        (b"p\0\0\0\x04", "08P01"),
    ] {
        let mut session = port.session().await;
        session.send(bytes).await;
        let answer = session.until_closed().await;
        assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("E", state), "{bytes:?}");
        assert_eq!(answer[0].field('S').as_deref(), Some("FATAL"));
    }
}

#[tokio::test]
async fn bodies_that_make_no_sense_are_errors_of_their_message() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.send(&frame(b'Q', b"SELECT '\xc3\x28'\0")).await;
    let answer = session.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("EZ", "22021"));
    session.send(&frame(b'Q', b"no end")).await;
    assert_eq!(session.until_ready().await[0].sqlstate(), "08P01");
    session.send(&[frame(b'B', b"\0\0\0"), parse("", "SELECT 1"), sync()].concat()).await;
    let answer = session.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("EZ", "08P01"), "skipped up to Sync");
    session.send(&frame(b'F', b"\0\0\0\x01\0\0\0\0\0\0")).await;
    let answer = session.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), answer[0].sqlstate().as_str()), ("EZ", "0A000"));
    assert_eq!(session.rows("SELECT 2").await, [[Some("2".to_owned())]]);
}

#[tokio::test]
async fn text_parameters_must_be_utf8() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let bind = frame(b'B', b"\0\0\0\0\0\x01\0\0\0\x02\xc3\x28\0\0");
    session.send(&[parse("", "SELECT $1::text"), bind, crate::client::execute("", 0), sync()].concat()).await;
    let answer = session.until_ready().await;
    let error = answer.iter().find(|m| m.kind == 'E').expect("an error");
    assert_eq!(error.sqlstate(), "22021", "{answer:?}");
}

#[tokio::test]
async fn ten_thousand_parentheses_are_too_deep() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let deep = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(session.query(&deep).await[0].sqlstate(), "54001");
    session.send(&[parse("", &deep), sync()].concat()).await;
    assert_eq!(session.until_ready().await[0].sqlstate(), "54001");
    assert_eq!(session.rows("SELECT ((1))").await, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn who_does_not_say_who_it_is_has_to_go() {
    let port = Port::open_with(DoorConfig { max_connections: 50, startup_deadline: Duration::from_millis(50) }).await;
    let mut slow = port.socket().await;
    slow.send(b"\0\0").await;
    let answer = slow.until_closed().await;
    assert_eq!(answer[0].field('S').as_deref(), Some("FATAL"));
    assert!(answer[0].field('M').unwrap().contains("timeout"), "{answer:?}");
}

#[tokio::test]
async fn one_session_too_many_is_told_so() {
    let port = Port::open_with(DoorConfig { max_connections: 2, startup_deadline: Duration::from_secs(20) }).await;
    let (mut first, second) = (port.session().await, port.session().await);
    let mut third = port.socket().await;
    third.startup(&[("user", "postgres")]).await;
    assert_eq!(third.until_closed().await[0].sqlstate(), "53300");
    assert_eq!(first.rows("SELECT 1").await.len(), 1);
    drop(second);
    let mut tries = 0;
    loop {
        let mut next = port.socket().await;
        next.startup(&[("user", "postgres")]).await;
        if next.message().await.expect("an answer").kind == 'R' {
            break;
        }
        tries += 1;
        assert!(tries < 1000, "the place of a session that left is free again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_long_statement_is_fine() {
    let port = Port::open().await;
    let mut session = port.session().await;
    let long = "x".repeat(3 << 20);
    session.send(&query(&format!("SELECT '{long}'"))).await;
    let answer = session.until_ready().await;
    assert_eq!(answer[1].columns(), [Some(long)]);
}
