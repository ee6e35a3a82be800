//! A connection as messages: a read buffer, a write buffer, and the socket between them.
//!
//! Answers are collected and sent when the client waits for them: at ReadyForQuery and Flush, but not
//! while another whole message is already here (a pipelining client gets its answers in few packets), and
//! whenever [`OUTPUT_BYTES_HIGH`] have piled up, which is what bounds the memory of a long result.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    backend::Backend,
    frontend::{self, BadFrame},
    startup::{self, BadStartup, Opening},
};

/// Rows are sent on when this much waits: several packets' worth, small against a session's other memory.
pub const OUTPUT_BYTES_HIGH: usize = 64 << 10;

/// First size of the read buffer; most messages of most clients are shorter.
const INPUT_BYTES: usize = 8 << 10;

/// Above this a message counts against the budget of all sessions together.
const LONG_MESSAGE_BYTES: usize = 256 << 10;

/// A buffer that had to grow beyond this is given back when it is empty again.
const KEEP_BYTES: usize = 1 << 20;

/// How much the long messages of all sessions may take while they are read.
#[derive(Clone, Debug)]
pub struct MessageBudget(Arc<Semaphore>);

impl MessageBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes >> 10)))
    }
    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes >> 10).ok()?).ok()
    }
}

/// The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side went away, or the network did.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It sent something no message can be cut from.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// Its first packets make no sense.
    #[error(transparent)]
    Startup(#[from] BadStartup),
    /// [`MessageBudget`] is used up.
    #[error("out of memory: too many long messages at once, this one has {0} bytes")]
    Crowded(usize),
}

/// A socket and its buffers.
pub struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    flush_due: bool,
    budget: MessageBudget,
    long_message: Option<OwnedSemaphorePermit>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Around an accepted socket.
    pub fn new(stream: S, budget: MessageBudget) -> Self {
        let (input, output) = (BytesMut::with_capacity(INPUT_BYTES), BytesMut::with_capacity(INPUT_BYTES));
        Self { stream, input, output, flush_due: false, budget, long_message: None }
    }

    /// The next startup packet; `None` when the client left.
    pub async fn opening(&mut self) -> Result<Option<Opening>, WireError> {
        loop {
            if let Some(opening) = startup::cut(&mut self.input)? {
                return Ok(Some(opening));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Whether the client sent more than the packets read so far. Before TLS that is an attack: somebody in between
    /// could have put it there.
    pub fn has_unread_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// The next message's type and body; `None` when the client left without a goodbye. Safe to cancel.
    pub async fn message(&mut self) -> Result<Option<(u8, Bytes)>, WireError> {
        loop {
            if let Some(frame) = frontend::cut(&mut self.input)? {
                return Ok(Some(frame));
            }
            self.admit_long_message()?;
            if self.flush_due {
                self.flush().await?;
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The type of the next message, taken from its first byte; `None` when the client left. Safe to cancel.
    pub async fn peek(&mut self) -> Result<Option<u8>, WireError> {
        loop {
            if let Some(kind) = self.input.first() {
                return Ok(Some(*kind));
            }
            if self.flush_due {
                self.flush().await?;
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Where answers are written.
    pub fn say(&mut self) -> Backend<'_> {
        Backend(&mut self.output)
    }

    /// The client waits: send what there is before reading on.
    pub fn flush_before_read(&mut self) {
        self.flush_due = true;
    }

    /// Sends when much has piled up.
    pub async fn relieve(&mut self) -> io::Result<()> {
        match self.output.len() >= OUTPUT_BYTES_HIGH {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Sends everything written so far.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_due = false;
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
            if self.output.capacity() > KEEP_BYTES {
                self.output = BytesMut::with_capacity(INPUT_BYTES);
            }
        }
        self.stream.flush().await
    }

    /// One byte that is not a message: the answer to SSLRequest and GSSENCRequest.
    pub async fn send_byte(&mut self, byte: u8) -> io::Result<()> {
        self.stream.write_all(&[byte]).await?;
        self.stream.flush().await
    }

    /// Forgets what was written and not sent: after a panic it may end in half a message.
    pub fn drop_output(&mut self) {
        self.output.clear();
    }

    /// Sends the rest and says goodbye to the socket.
    pub async fn close(&mut self) {
        // The client may be gone, which is what we are about to make true anyway.
        let _ = self.flush().await;
        let _ = self.stream.shutdown().await;
    }

    /// False: the other side sends no more.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES {
            self.input = BytesMut::with_capacity(INPUT_BYTES);
        }
        self.input.reserve(INPUT_BYTES);
        Ok(self.stream.read_buf(&mut self.input).await? > 0)
    }

    fn admit_long_message(&mut self) -> Result<(), WireError> {
        let bytes = frontend::announced(&self.input);
        if bytes <= LONG_MESSAGE_BYTES {
            self.long_message = None;
        } else if self.long_message.is_none() {
            self.long_message = Some(self.budget.take(bytes).ok_or(WireError::Crowded(bytes))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn answers_wait_while_messages_are_here() {
        let (mut client, server) = duplex(1 << 16);
        let mut wire = Wire::new(server, MessageBudget::new(1 << 20));
        client.write_all(b"S\0\0\0\x04S\0\0\0\x04X\0\0").await.unwrap();
        for _ in 0..2 {
            assert_eq!(wire.message().await.unwrap(), Some((b'S', Bytes::new())));
            wire.say().bare(b'1');
            wire.flush_before_read();
        }
        let (next, mut got) = (wire.message(), [0; 10]);
        tokio::pin!(next);
        tokio::select! {
            _ = &mut next => panic!("only half a message was sent"),
            read = client.read_exact(&mut got) => read.unwrap(),
        };
        assert_eq!(&got, b"1\0\0\0\x041\0\0\0\x04", "both answers in one go, before the server waits");
    }

    #[tokio::test]
    async fn long_messages_share_a_budget() {
        let budget = MessageBudget::new(1 << 20);
        let announce = [&b"d"[..], &(700u32 << 10).to_be_bytes()].concat();
        let (mut first, server) = duplex(1 << 20);
        let mut one = Wire::new(server, budget.clone());
        first.write_all(&announce).await.unwrap();
        let reading = tokio::time::timeout(std::time::Duration::ZERO, one.message());
        assert!(reading.await.is_err(), "the rest has not come");
        let (mut second, server) = duplex(1 << 20);
        let mut two = Wire::new(server, budget);
        second.write_all(&announce).await.unwrap();
        assert!(matches!(two.message().await, Err(WireError::Crowded(_))));
        first.write_all(&vec![0; (700 << 10) - 4]).await.unwrap();
        assert_eq!(one.message().await.unwrap().unwrap().1.len(), (700 << 10) - 4);
        first.write_all(b"S").await.unwrap();
        drop(first);
        assert_eq!(one.message().await.unwrap(), None);
        second.write_all(b"S").await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_not_an_error() {
        let (client, server) = duplex(64);
        drop(client);
        let mut wire = Wire::new(server, MessageBudget::new(0));
        assert_eq!(wire.message().await.unwrap(), None);
        assert_eq!(wire.opening().await.unwrap(), None);
    }
}
