//! A client that speaks the protocol by hand, and a port to speak to.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use kv::local::Local;
use server::pgwire::{DoorConfig, SqlDoor};
use sql::{Gateway, GatewayConfig, query::scan::store::RowScan};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing here takes long; what does, hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open SQL port.
pub struct Port {
    pub door: Arc<SqlDoor>,
    pub address: std::net::SocketAddr,
}

impl Port {
    /// With bounds that no test meets by accident.
    pub async fn open() -> Port {
        Self::open_with(DoorConfig { max_connections: 50, startup_deadline: PATIENCE }).await
    }

    pub async fn open_with(config: DoorConfig) -> Port {
        let local = Local::start(&[], Some(Arc::new(RowScan::default())));
        let gateway =
            Gateway::new(GatewayConfig { client: local.client, pd: local.pd, clock: local.clock, spawn: local.spawn });
        gateway.start().await.expect("the catalog is made");
        let door = SqlDoor::new(config);
        door.gateway.set(gateway).map_err(drop).expect("set once");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        #[allow(clippy::disallowed_methods, reason = "a real port on a real runtime")]
        tokio::spawn(door.clone().serve(listener));
        Port { door, address }
    }

    /// A socket that has said nothing yet.
    pub async fn socket(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.expect("the port is open"), key: None }
    }

    /// A session that is ready.
    pub async fn session(&self) -> Client {
        let mut client = self.socket().await;
        client.startup(&[("user", "postgres")]).await;
        let greeting = client.until_ready().await;
        assert_eq!(greeting[0].kind, 'R', "{greeting:?}");
        let key = greeting.iter().find(|m| m.kind == 'K').expect("a key for cancelling");
        client.key = Some(key.body.clone());
        client
    }
}

/// One message of the server.
#[derive(Clone, PartialEq)]
pub struct Message {
    pub kind: char,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse.
    pub fn field(&self, code: char) -> Option<String> {
        let mut fields = self.body.split(|b| *b == 0);
        let found = fields.find(|f| f.first() == Some(&(code as u8)))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }
    /// SQLSTATE of an error.
    pub fn sqlstate(&self) -> String {
        assert_eq!(self.kind, 'E', "{self:?}");
        self.field('C').expect("an error has a code")
    }
    /// Text columns of a DataRow; NULL is `None`.
    pub fn columns(&self) -> Vec<Option<String>> {
        assert_eq!(self.kind, 'D', "{self:?}");
        let int = |at: usize, len: usize| self.body[at..at + len].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
        let mut at = 2;
        (0..int(0, 2))
            .map(|_| {
                let length = int(at, 4) as i32;
                at += 4;
                let end = at + usize::try_from(length).ok()?;
                let column = String::from_utf8_lossy(&self.body[at..end]).into_owned();
                at = end;
                Some(column)
            })
            .collect()
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.kind, String::from_utf8_lossy(&self.body))
    }
}

/// What kinds of messages came, as a word.
pub fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|m| m.kind).collect()
}

/// A connection, spoken to in bytes.
pub struct Client {
    stream: TcpStream,
    key: Option<Vec<u8>>,
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server reads");
    }

    pub async fn startup(&mut self, parameters: &[(&str, &str)]) {
        self.startup_version(3 << 16, parameters).await;
    }

    pub async fn startup_version(&mut self, version: u32, parameters: &[(&str, &str)]) {
        let mut body = BytesMut::new();
        body.put_u32(version);
        for text in parameters.iter().flat_map(|(key, value)| [key, value]) {
            body.put_slice(text.as_bytes());
            body.put_u8(0);
        }
        body.put_u8(0);
        self.send(&[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()).await;
    }

    /// The next message; `None` when the server closed the connection.
    pub async fn message(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.read()).await.expect("the server answers in time")
    }

    async fn read(&mut self) -> Option<Message> {
        let kind = self.stream.read_u8().await.ok()?;
        let length = self.stream.read_u32().await.ok()?;
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Message { kind: char::from(kind), body })
    }

    /// One byte that is not a message.
    pub async fn byte(&mut self) -> u8 {
        timeout(PATIENCE, self.stream.read_u8()).await.expect("in time").expect("a byte")
    }

    /// All messages up to and with the next of this kind.
    pub async fn until(&mut self, kind: char) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.last().is_none_or(|m: &Message| m.kind != kind) {
            match self.message().await {
                Some(message) => messages.push(message),
                None => panic!("the connection ended; before it: {messages:?}"),
            }
        }
        messages
    }

    /// All messages up to and with ReadyForQuery.
    pub async fn until_ready(&mut self) -> Vec<Message> {
        self.until('Z').await
    }

    /// All messages until the server closes the connection.
    pub async fn until_closed(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            messages.push(message);
        }
        messages
    }

    /// Sends a Query and collects the answer.
    pub async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql)).await;
        self.until_ready().await
    }

    /// Rows of a Query that must work.
    pub async fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let answer = self.query(sql).await;
        assert!(answer.iter().all(|m| m.kind != 'E'), "{sql}: {answer:?}");
        answer.iter().filter(|m| m.kind == 'D').map(Message::columns).collect()
    }

    /// A Query that must work.
    pub async fn run(&mut self, sql: &str) {
        self.rows(sql).await;
    }

    /// The body of this session's BackendKeyData.
    pub fn key(&self) -> &[u8] {
        self.key.as_deref().expect("a session has a key")
    }
}

/// A frame.
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}
pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), b"\0"].concat())
}
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}
/// Text parameters, results in text or binary.
pub fn bind(portal: &str, statement: &str, params: &[Option<&str>], binary_results: bool) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.put_u16(params.len() as u16);
    for param in params {
        match param {
            Some(text) => {
                body.put_i32(text.len() as i32);
                body.put_slice(text.as_bytes());
            }
            None => body.put_i32(-1),
        }
    }
    body.put_slice(if binary_results { b"\0\x01\0\x01" } else { b"\0\0" });
    frame(b'B', &body)
}
/// `target` is `S` or `P`.
pub fn describe(target: char, name: &str) -> Vec<u8> {
    frame(b'D', &[&[target as u8][..], name.as_bytes(), b"\0"].concat())
}
/// `target` is `S` or `P`.
pub fn close(target: char, name: &str) -> Vec<u8> {
    frame(b'C', &[&[target as u8][..], name.as_bytes(), b"\0"].concat())
}
pub fn execute(portal: &str, max_rows: i32) -> Vec<u8> {
    frame(b'E', &[portal.as_bytes(), b"\0", &max_rows.to_be_bytes()].concat())
}
pub fn sync() -> Vec<u8> {
    frame(b'S', b"")
}
pub fn flush() -> Vec<u8> {
    frame(b'H', b"")
}
