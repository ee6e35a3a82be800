//! Raft traffic: one stream per (this node, other node), frames of many regions' messages, reconnecting for ever.
//!
//! ```text
//!   store loop ── send(address, frame) ─▶ bounded queue ─▶ stream task ─▶ Raft.Stream
//!       never waits                       full: dropped      takes all that waits into one frame
//! ```
//!
//! Dropping is safe: Raft sends again. Waiting is not: the store loop serves all regions.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use kv::Clock;
use node::FrameSender;
use parking_lot::Mutex;
use proto::wire::{RaftFrame, RaftMessage, SnapshotHead};
use raftstore::snapshot::Outgoing;
use tokio::sync::mpsc;

use super::{MESSAGE_BYTES_MAX, channels::Channels, snapshots, stubs::raft_client::RaftClient};
use crate::clock::{SystemClock, Tasks};

/// Frames that may wait for a stream: a second's worth of traffic under load. What waits longer than that helps nobody.
const QUEUE_FRAMES: usize = 4096;

/// A frame takes waiting messages until it has this many bytes: enough to amortise a frame, far below the limit of a message.
const FRAME_BYTES: usize = 1 << 20;

/// Between attempts to open a stream. Short, because an election may wait for it.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// Streams to other nodes, opened with the first frame for an address.
pub struct RaftStreams {
    channels: Arc<Channels>,
    tasks: Tasks,
    queues: Mutex<HashMap<String, mpsc::Sender<RaftFrame>>>,
    dropped: AtomicU64,
    runtime: tokio::runtime::Handle,
}

impl RaftStreams {
    /// Must be called on a tokio runtime: streams run there.
    pub fn new(channels: Arc<Channels>, tasks: Tasks) -> Self {
        let runtime = tokio::runtime::Handle::current();
        Self { channels, tasks, queues: Mutex::default(), dropped: AtomicU64::new(0), runtime }
    }
    /// Messages that found their queue full since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn open(&self, address: &str) -> mpsc::Sender<RaftFrame> {
        let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
        let waiting = Arc::new(Mutex::new(waiting));
        let stream = PeerStream { address: address.into(), channels: self.channels.clone(), waiting };
        let _on_runtime = self.runtime.enter(); // The store loop's thread is not one of tokio's.
        self.tasks.run("raft stream", stream.run());
        queue
    }
}

impl FrameSender for RaftStreams {
    fn send(&self, address: &str, frame: RaftFrame) {
        let mut queues = self.queues.lock();
        let queue = match queues.get(address) {
            Some(queue) => queue,
            None => queues.entry(address.to_owned()).or_insert(self.open(address)),
        };
        if let Err(mpsc::error::TrySendError::Full(lost)) = queue.try_send(frame) {
            self.dropped.fetch_add(lost.messages.len() as u64, Ordering::Relaxed);
        }
    }

    fn send_snapshot(&self, address: &str, head: SnapshotHead, snapshot: Outgoing) {
        let transfer = snapshots::send(self.channels.clone(), address.into(), head, snapshot);
        let _on_runtime = self.runtime.enter();
        self.tasks.run("snapshot", transfer);
    }
}

struct PeerStream {
    address: Arc<str>,
    channels: Arc<Channels>,
    waiting: Arc<Mutex<mpsc::Receiver<RaftFrame>>>,
}

impl PeerStream {
    /// Until the sender is dropped.
    async fn run(self) {
        let mut said = String::new();
        while !self.waiting.lock().is_closed() {
            let (Ok(reason) | Err(reason)) = self.connect_and_send().await;
            if reason != said {
                tracing::info!(address = %self.address, reason, "raft stream ended, reconnecting");
                said = reason;
            }
            SystemClock.sleep(RECONNECT_AFTER).await;
        }
    }

    async fn connect_and_send(&self) -> Result<String, String> {
        let channel = self.channels.to(&self.address).map_err(|e| e.to_string())?;
        let frames = Frames { introduced: false, waiting: self.waiting.clone() };
        let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let closed = client.stream(frames).await.map_err(|status| status.to_string())?;
        Ok(closed.into_inner().reason)
    }
}

/// What goes into one stream. When the stream breaks, what still waits goes into the next.
struct Frames {
    introduced: bool,
    waiting: Arc<Mutex<mpsc::Receiver<RaftFrame>>>,
}

impl Stream for Frames {
    type Item = RaftFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftFrame>> {
        let mut frame = {
            let mut waiting = self.waiting.lock();
            let mut frame = match waiting.poll_recv(cx) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            take_more(&mut frame, &mut waiting);
            frame
        };
        if self.introduced {
            frame.from_uuid.clear(); // Said once a stream.
        }
        self.introduced = true;
        Poll::Ready(Some(frame))
    }
}

/// Frames of one queue go from one store to one store, so their messages may share a frame.
fn take_more(frame: &mut RaftFrame, waiting: &mut mpsc::Receiver<RaftFrame>) {
    let size = |messages: &[RaftMessage]| messages.iter().map(|m| m.message.len()).sum::<usize>();
    let mut bytes = size(&frame.messages);
    while bytes < FRAME_BYTES {
        let Ok(more) = waiting.try_recv() else { break };
        bytes += size(&more.messages);
        frame.messages.extend(more.messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::stubs::raft_server::{Raft, RaftServer};
    use bytes::Bytes;
    use futures::StreamExt;
    use proto::wire::{RaftStreamClosed, SnapshotChunk, SnapshotReceived, VerifyRequest, VerifyResponse};
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
        async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
            Err(Status::unimplemented("frames only"))
        }
        async fn snapshot(&self, _: Request<Streaming<SnapshotChunk>>) -> Result<Response<SnapshotReceived>, Status> {
            Err(Status::unimplemented("frames only"))
        }
    }

    fn frame(region_id: u64) -> RaftFrame {
        RaftFrame {
            from_uuid: Bytes::from_static(b"uuid"),
            messages: vec![RaftMessage { region_id, ..Default::default() }],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_over_reconnects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sink, mut frames) = mpsc::unbounded_channel();
        let tasks = Tasks::default();
        let server = tonic::transport::Server::builder().add_service(RaftServer::new(Sink(sink)));
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        tasks.run("server", async { serving.await.unwrap() });

        let streams = RaftStreams::new(Arc::default(), tasks);
        [1, 2, 99].iter().for_each(|region| streams.send(&address, frame(*region))); // The server breaks the stream at 99.
        let mut regions = Vec::new();
        while regions.len() < 3 {
            let frame = frames.recv().await.unwrap();
            assert_eq!(frame.from_uuid.is_empty(), !regions.is_empty(), "the first frame says who it is");
            regions.extend(frame.messages.iter().map(|m| m.region_id));
        }
        assert_eq!(regions, [1, 2, 99]);
        let resent = loop {
            streams.send(&address, frame(5)); // May still go into the broken stream: Raft repeats, so do we.
            if let Ok(frame) = tokio::time::timeout(Duration::from_millis(20), frames.recv()).await {
                break frame.unwrap();
            }
        };
        assert_eq!(&resent.from_uuid[..], b"uuid", "the new stream introduces itself again");
        assert_eq!(streams.dropped(), 0);
    }
}
