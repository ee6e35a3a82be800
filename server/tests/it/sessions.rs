//! Greeting, cancelling, ending.

use std::time::Duration;

use crate::client::{Port, frame, kinds, query};

#[tokio::test]
async fn encryption_is_declined_and_the_session_goes_on() {
    let port = Port::open().await;
    let mut client = port.socket().await;
    for code in [80_877_103u32, 80_877_104] {
        client.send(&[&8u32.to_be_bytes()[..], &code.to_be_bytes()].concat()).await;
        assert_eq!(client.byte().await, b'N');
    }
    client.startup(&[("user", "postgres"), ("database", "postgres")]).await;
    let greeting = client.until_ready().await;
    let told: Vec<String> = greeting.iter().filter(|m| m.kind == 'S').map(|m| text(&m.body)).collect();
    for needed in [
        "server_version=15",
        "client_encoding=UTF8",
        "standard_conforming_strings=on",
        "integer_datetimes=on",
        "TimeZone=",
        "DateStyle=",
    ] {
        assert!(told.iter().any(|t| t.starts_with(needed)), "{needed} in {told:?}");
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim_end_matches('\0').replacen('\0', "=", 1)
}

#[tokio::test]
async fn newer_protocols_are_negotiated() {
    let port = Port::open().await;
    let mut client = port.socket().await;
    client.startup_version(3 << 16 | 2, &[("user", "postgres")]).await;
    let greeting = client.until_ready().await;
    assert!(!kinds(&greeting).contains('v'));
    assert!(greeting.iter().find(|m| m.kind == 'K').unwrap().body.len() > 8, "3.2 has longer keys");
    let mut client = port.socket().await;
    client.startup_version(3 << 16 | 9999, &[("user", "postgres"), ("_pq_.unknown", "1")]).await;
    let greeting = client.until_ready().await;
    assert_eq!((greeting[0].kind, &greeting[0].body[..4]), ('v', &[0, 3, 0, 2][..]));
}

#[tokio::test]
async fn a_statement_can_be_cancelled_from_outside() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.run("CREATE TABLE n (a int PRIMARY KEY)").await;
    session.run("INSERT INTO n SELECT * FROM generate_series(1, 1000)").await;
    // A thousand to the fourth: nobody waits for that.
    session.send(&query("SELECT count(*) FROM n a, n b, n c, n d WHERE a.a + b.a + c.a + d.a = 0")).await;
    let request = [&80_877_102u32.to_be_bytes()[..], session.key()].concat();
    let answer = loop {
        let mut canceller = port.socket().await;
        canceller.send(&[&(request.len() as u32 + 4).to_be_bytes()[..], &request].concat()).await;
        assert!(canceller.until_closed().await.is_empty(), "a canceller is told nothing");
        // A request that came before the statement began has no effect.
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), session.until_ready()).await {
            break answer;
        }
    };
    let error = answer.iter().find(|m| m.kind == 'E').expect("an error");
    assert_eq!(error.sqlstate(), "57014");
    assert_eq!(session.rows("SELECT 1").await.len(), 1);
}

#[tokio::test]
async fn terminate_ends_quietly() {
    let port = Port::open().await;
    let mut session = port.session().await;
    session.send(&frame(b'X', b"")).await;
    assert!(session.until_closed().await.is_empty());
}

#[tokio::test]
async fn draining_lets_transactions_end_and_refuses_new_sessions() {
    let port = Port::open().await;
    let (mut idle, mut busy) = (port.session().await, port.session().await);
    busy.run("BEGIN").await;
    let door = port.door.clone();
    let draining = async move { door.drain(Duration::from_secs(20)).await };
    let clients = async {
        assert_eq!(idle.until_closed().await[0].sqlstate(), "57P01");
        busy.run("COMMIT").await;
        assert_eq!(busy.until_closed().await[0].sqlstate(), "57P01");
    };
    tokio::join!(draining, clients);
    assert!(tokio::net::TcpStream::connect(port.address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn draining_does_not_wait_for_ever() {
    let port = Port::open().await;
    let mut stuck = port.session().await;
    stuck.run("BEGIN").await;
    port.door.drain(Duration::ZERO).await;
    assert_eq!(stuck.until_closed().await[0].sqlstate(), "57P01");
}
