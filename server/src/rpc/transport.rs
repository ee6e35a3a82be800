//! Raft traffic: one stream per (this store, other store), frames of many regions' messages, reconnecting for ever.
//!
//! ```text
//!   store loop ── send(to, messages) ─▶ bounded queue ─▶ stream task ─▶ Raft.Stream
//!       never waits                     full: dropped      takes all that waits into one frame
//! ```
//!
//! Dropping is safe: Raft sends again. Waiting is not: the store loop serves all regions.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use kv::Clock;
use parking_lot::Mutex;
use proto::{
    ClusterId, StoreId,
    wire::{RaftFrame, RaftMessage},
};
use tokio::sync::mpsc;

use super::{MESSAGE_BYTES_MAX, book::AddressBook, channels::Channels, stubs::raft_client::RaftClient};
use crate::clock::{SystemClock, Tasks};

/// Turns of the store loop that may wait for a stream: a second's worth of traffic under load. What waits longer
/// than that helps nobody.
const QUEUE_TURNS: usize = 4096;

/// A frame takes waiting messages until it has this many bytes: enough to amortise a frame, far below the limit of a message.
const FRAME_BYTES: usize = 1 << 20;

/// Between attempts to open a stream. Short, because an election may wait for it.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// Says who sends; the first frame of a stream carries all of it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Of the founding record.
    pub cluster: ClusterId,
    /// This store.
    pub store: StoreId,
    /// Its data directory's.
    pub uuid: Bytes,
    /// Grows at every start of this process.
    pub boot: u64,
}

/// Sends Raft messages to other stores.
pub struct RaftTransport {
    book: Arc<AddressBook>,
    channels: Arc<Channels>,
    tasks: Tasks,
    identity: Arc<OnceLock<Identity>>,
    queues: Mutex<HashMap<StoreId, mpsc::Sender<Vec<RaftMessage>>>>,
    dropped: AtomicU64,
    runtime: tokio::runtime::Handle,
}

impl RaftTransport {
    /// Sends nothing before [`RaftTransport::identify`]. Must be called on a tokio runtime: streams run there.
    pub fn new(book: Arc<AddressBook>, channels: Arc<Channels>, tasks: Tasks) -> Self {
        Self {
            book,
            channels,
            tasks,
            identity: Arc::default(),
            queues: Mutex::default(),
            dropped: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
        }
    }
    /// Tells who this store is, once it is founded or has joined. Only the first call counts.
    pub fn identify(&self, identity: Identity) {
        // A second founding is not possible; a second call says the same.
        let _ = self.identity.set(identity);
    }
    /// Messages that found their queue full since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Hands over messages to one store; never waits.
    pub fn enqueue(&self, to: StoreId, messages: Vec<RaftMessage>) {
        let mut queues = self.queues.lock();
        let queue = match queues.entry(to) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(none) => none.insert(self.open(to)),
        };
        if let Err(mpsc::error::TrySendError::Full(lost)) = queue.try_send(messages) {
            self.dropped.fetch_add(lost.len() as u64, Ordering::Relaxed);
        }
    }

    fn open(&self, to: StoreId) -> mpsc::Sender<Vec<RaftMessage>> {
        let (queue, waiting) = mpsc::channel(QUEUE_TURNS);
        let stream = PeerStream {
            to,
            book: self.book.clone(),
            channels: self.channels.clone(),
            identity: self.identity.clone(),
            waiting: Arc::new(Mutex::new(waiting)),
        };
        let _on_runtime = self.runtime.enter(); // The store loop's thread is not one of tokio's.
        self.tasks.run("raft stream", stream.run());
        queue
    }
}

struct PeerStream {
    to: StoreId,
    book: Arc<AddressBook>,
    channels: Arc<Channels>,
    identity: Arc<OnceLock<Identity>>,
    waiting: Arc<Mutex<mpsc::Receiver<Vec<RaftMessage>>>>,
}

impl PeerStream {
    /// Until the transport is dropped.
    async fn run(self) {
        let mut last_reason = String::new();
        while !self.waiting.lock().is_closed() {
            let reason = match self.connect_and_send().await {
                Ok(closed) => closed,
                Err(failed) => failed,
            };
            if reason != last_reason {
                tracing::info!(store = %self.to, reason, "raft stream ended, reconnecting");
                last_reason = reason;
            }
            SystemClock.sleep(RECONNECT_AFTER).await;
        }
    }

    async fn connect_and_send(&self) -> Result<String, String> {
        let address = self.book.address(self.to).ok_or("address not known yet")?;
        let identity = self.identity.get().ok_or("not part of a cluster yet")?.clone();
        let channel = self.channels.to(&address).map_err(|e| e.to_string())?;
        let frames =
            Frames { to: self.to, hello: Some(identity.uuid.clone()), identity, waiting: self.waiting.clone() };
        let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let closed = client.stream(frames).await.map_err(|s| format!("{address}: {s}"))?;
        Ok(closed.into_inner().reason)
    }
}

/// What goes into one stream. When the stream breaks, what still waits goes into the next.
struct Frames {
    to: StoreId,
    identity: Identity,
    hello: Option<Bytes>,
    waiting: Arc<Mutex<mpsc::Receiver<Vec<RaftMessage>>>>,
}

impl Stream for Frames {
    type Item = RaftFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftFrame>> {
        let messages = {
            let mut waiting = self.waiting.lock();
            let first = match waiting.poll_recv(cx) {
                Poll::Ready(Some(messages)) => messages,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            collect_frame(first, &mut waiting)
        };
        Poll::Ready(Some(RaftFrame {
            cluster_id: self.identity.cluster.0,
            from_store: self.identity.store.0,
            from_uuid: self.hello.take().unwrap_or_default(),
            to_store: self.to.0,
            messages,
            boot_id: self.identity.boot,
        }))
    }
}

fn collect_frame(mut frame: Vec<RaftMessage>, waiting: &mut mpsc::Receiver<Vec<RaftMessage>>) -> Vec<RaftMessage> {
    let size = |messages: &[RaftMessage]| messages.iter().map(|m| m.message.len()).sum::<usize>();
    let mut bytes = size(&frame);
    while bytes < FRAME_BYTES {
        let Ok(more) = waiting.try_recv() else { break };
        bytes += size(&more);
        frame.extend(more);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::stubs::raft_server::{Raft, RaftServer};
    use futures::StreamExt;
    use proto::wire::{RaftStreamClosed, Store};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status, Streaming};

    struct Sink(mpsc::UnboundedSender<RaftFrame>);

    #[tonic::async_trait]
    impl Raft for Sink {
        async fn stream(&self, frames: Request<Streaming<RaftFrame>>) -> Result<Response<RaftStreamClosed>, Status> {
            let mut frames = frames.into_inner();
            while let Some(frame) = frames.next().await {
                let frame = frame?;
                let last = frame.messages.iter().any(|m| m.region_id == 99);
                self.0.send(frame).unwrap();
                if last {
                    return Err(Status::aborted("told to"));
                }
            }
            Ok(Response::new(RaftStreamClosed::default()))
        }
    }

    fn message(region_id: u64) -> Vec<RaftMessage> {
        vec![RaftMessage { region_id, ..Default::default() }]
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_over_reconnects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sink, mut frames) = mpsc::unbounded_channel();
        let (tasks, book) = (Tasks::default(), Arc::new(AddressBook::default()));
        let server = tonic::transport::Server::builder().add_service(RaftServer::new(Sink(sink)));
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        tasks.run("server", async { serving.await.unwrap() });

        let transport = RaftTransport::new(book.clone(), Arc::default(), tasks);
        transport.enqueue(StoreId(2), message(1)); // Waits for the address and the identity.
        let uuid = Bytes::from_static(b"uuid");
        transport.identify(Identity { cluster: ClusterId(7), store: StoreId(1), uuid: uuid.clone(), boot: 3 });
        book.learn(&[Store { id: 2, address, ..Default::default() }]);
        transport.enqueue(StoreId(2), message(99)); // The server breaks the stream at this one.

        let mut regions = Vec::new();
        while regions.len() < 2 {
            let frame = frames.recv().await.unwrap();
            assert_eq!((frame.cluster_id, frame.from_store, frame.to_store, frame.boot_id), (7, 1, 2, 3));
            assert_eq!(frame.from_uuid.is_empty(), !regions.is_empty(), "the first frame says who it is");
            regions.extend(frame.messages.iter().map(|m| m.region_id));
        }
        assert_eq!(regions, [1, 99]);
        let frame = loop {
            transport.enqueue(StoreId(2), message(5)); // May still go into the broken stream: Raft repeats, so do we.
            let resent = tokio::time::timeout(Duration::from_millis(20), frames.recv());
            if let Ok(frame) = resent.await {
                break frame.unwrap();
            }
        };
        assert_eq!(frame.from_uuid, uuid, "the new stream introduces itself again");
        assert_eq!(transport.dropped(), 0);
    }
}
