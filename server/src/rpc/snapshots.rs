//! Snapshots between nodes: each on a stream of its own, a block after the other, at the sender's pace.
//!
//! ```text
//!   Outgoing ── next_block (disk) ─▶ few blocks ahead ─▶ Raft.Snapshot ─▶ Receiving: block … finish (disk)
//!      ▲                                                                      │
//!      └── finish(outcome) ◀────────────── SnapshotReceived or a broken stream ┘
//! ```
//!
//! Whatever breaks, the receiver drops its `Receiving` (and with it the files), and the sender tells its store.

use std::{sync::Arc, time::Duration};

use kv::Clock;
use proto::wire::{SnapshotChunk, SnapshotHead, snapshot_chunk::Kind};
use raftstore::{
    MonotonicClock,
    snapshot::{Outgoing, Receiving},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{channels::Channels, stubs::raft_client::RaftClient};
use crate::clock::SystemClock;

/// Blocks read before the connection takes them: one is sent while the next is read.
const BLOCKS_AHEAD: usize = 2;

/// A transfer may take this long, and this many times what its pace allows for: who is slower keeps a place among few.
const TRANSFER_AT_LEAST: Duration = Duration::from_secs(30);
/// See [`TRANSFER_AT_LEAST`].
const TRANSFER_TIMES: u32 = 4;

/// A sender that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(20);

/// Work on files, off the threads that serve connections.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    #[allow(clippy::disallowed_methods)] // `server` is no part of simulations.
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| format!("a panic: {e}"))
}

/// Carries a snapshot to `address` and tells how that ended.
pub(super) async fn send(channels: Arc<Channels>, address: String, head: SnapshotHead, snapshot: Outgoing) {
    let limit = TRANSFER_AT_LEAST + snapshot.pace_of_all() * TRANSFER_TIMES;
    let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
    let call = async {
        let channel = channels.to(&address.as_str().into()).map_err(|e| e.to_string())?;
        let answer = RaftClient::new(channel).snapshot(ReceiverStream::new(blocks)).await;
        let refusal = answer.map_err(|status| status.to_string())?.into_inner().refusal;
        if refusal.is_empty() { Ok(()) } else { Err(refusal) }
    };
    // When the call has ended, nobody takes blocks any more.
    let ended = CancellationToken::new();
    let limited = async {
        let _end = ended.clone().drop_guard();
        tokio::time::timeout(limit, call).await
    };
    let (fed, answer) = futures::join!(feed(head, snapshot, sender, &ended), limited);
    let outcome = answer.unwrap_or_else(|_| Err(format!("not done after {limit:?}")));
    // Without the snapshot its store has been told already.
    if let Ok(snapshot) = fed {
        snapshot.finish(outcome);
    }
}

/// Reads blocks until there are no more of them, or nobody takes them.
async fn feed(
    head: SnapshotHead,
    mut snapshot: Outgoing,
    to: mpsc::Sender<SnapshotChunk>,
    ended: &CancellationToken,
) -> Result<Outgoing, String> {
    let start = SystemClock.now();
    let mut next = Some(Kind::Head(head));
    while let Some(kind) = next.take() {
        let sent = ended.run_until_cancelled(to.send(SnapshotChunk { kind: Some(kind) })).await;
        if !matches!(sent, Some(Ok(()))) {
            break;
        }
        SystemClock.sleep(snapshot.pace().saturating_sub(SystemClock.now().since(start))).await;
        let (block, back) = on_disk(move || (snapshot.next_block(), snapshot)).await?;
        snapshot = back;
        next = block.map_err(|error| error.to_string())?.map(Kind::Block);
    }
    Ok(snapshot)
}

/// Takes a snapshot from its stream; the reason, when it was not taken. `begin` is asked with the head.
pub(super) async fn receive(
    mut chunks: Streaming<SnapshotChunk>,
    begin: impl FnOnce(SnapshotHead) -> Result<Receiving, String>,
) -> Result<(), String> {
    let Some(Kind::Head(head)) = next(&mut chunks).await? else {
        return Err("the stream does not begin with a head".into());
    };
    let mut receiving = begin(head)?;
    while let Some(kind) = next(&mut chunks).await? {
        let Kind::Block(block) = kind else { return Err("a second head".into()) };
        let (taken, back) = on_disk(move || (receiving.block(&block), receiving)).await?;
        taken?;
        receiving = back;
    }
    on_disk(|| receiving.finish()).await?
}

async fn next(chunks: &mut Streaming<SnapshotChunk>) -> Result<Option<Kind>, String> {
    let chunk = tokio::time::timeout(SILENCE, chunks.message()).await;
    let chunk = chunk.map_err(|_| format!("nothing for {SILENCE:?}"))?.map_err(|status| status.to_string())?;
    match chunk {
        None => Ok(None),
        Some(SnapshotChunk { kind: Some(kind) }) => Ok(Some(kind)),
        Some(_) => Err("a chunk of a kind this version does not know".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proto::{
        Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
        wire::{RaftFrame, RaftMessage, RaftStreamClosed, SnapshotReceived, VerifyRequest, VerifyResponse},
    };
    use raftstore::{
        Event, SnapshotDriver, StoreConfig, StoreCore, StoreHandle, Transport, bootstrap,
        effect::{SendTask, SnapshotId, SnapshotTask},
        engine::{Engine, WriteBatch, WriteOp, memory::MemoryEngine},
        log::MemoryLog,
    };
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::{
        clock::Tasks,
        rpc::stubs::raft_server::{Raft, RaftServer},
    };

    /// A store's door for snapshots.
    struct Door(StoreHandle);

    #[tonic::async_trait]
    impl Raft for Door {
        async fn stream(&self, _: Request<Streaming<RaftFrame>>) -> Result<Response<RaftStreamClosed>, Status> {
            Err(Status::unimplemented("snapshots only"))
        }
        async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
            Err(Status::unimplemented("snapshots only"))
        }
        async fn snapshot(
            &self,
            chunks: Request<Streaming<SnapshotChunk>>,
        ) -> Result<Response<SnapshotReceived>, Status> {
            let begin = |head: SnapshotHead| self.0.receive_snapshot(head.message.unwrap());
            let refusal = receive(chunks.into_inner(), begin).await.err().unwrap_or_default();
            Ok(Response::new(SnapshotReceived { refusal }))
        }
    }

    /// Keeps what is to be sent.
    #[derive(Default)]
    struct Desk(Mutex<Option<Outgoing>>);

    impl Transport for Desk {
        fn send(&self, _: StoreId, _: Vec<RaftMessage>) {}
        fn send_snapshot(&self, snapshot: Outgoing) {
            *self.0.lock().unwrap() = Some(snapshot);
        }
    }

    struct Store {
        _core: StoreCore,
        handle: StoreHandle,
        engine: Arc<MemoryEngine>,
        desk: Arc<Desk>,
        driver: SnapshotDriver,
    }

    fn store(id: u64) -> Store {
        let (engine, log) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryLog::new()));
        let peer = |id| Peer { id: PeerId(id), store: StoreId(id), role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: 1, version: 1 };
        let region = Region { id: RegionId(1), range: KeyRange::default(), epoch, peers: vec![peer(1), peer(2)] };
        bootstrap(&*engine, &*log, StoreId(id), &[region]).unwrap();
        let config = StoreConfig::new(StoreId(id), 1);
        let (_core, handle) = StoreCore::open(config, engine.clone(), log.clone(), Arc::new(SystemClock)).unwrap();
        let desk = Arc::new(Desk::default());
        let driver = SnapshotDriver::new(engine.clone(), log, desk.clone(), handle.clone());
        Store { _core, handle, engine, desk, driver }
    }

    /// A made snapshot of a few blocks on its way from store 1 to store 2, as of an index.
    fn outgoing(from: &Store, number: u64, index: u64) -> Outgoing {
        let value = vec![7; 1 << 20];
        from.engine.write(WriteBatch { ops: vec![WriteOp::Put(Cf::Data, "k".into(), value.into())] }).unwrap();
        let id = SnapshotId { region: RegionId(1), number };
        from.driver.run(SnapshotTask::Make(id)).unwrap();
        let made = from.handle.take_events().pop();
        let Some(Event::SnapshotMade(_, Ok(mut content))) = made else { panic!("not made: {made:?}") };
        content.position.index = index.into();
        let message = content.message(PeerId(1), PeerId(2), 9.into());
        let task = SendTask { id, to: StoreId(2), peer: PeerId(2), message };
        from.driver.run(SnapshotTask::Send(Box::new(task))).unwrap();
        from.desk.0.lock().unwrap().take().unwrap()
    }

    fn outcome(store: &Store) -> Result<(), String> {
        match store.handle.take_events().pop() {
            Some(Event::SnapshotSent { outcome, .. }) => outcome,
            other => panic!("no outcome: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_snapshot_arrives_whole_or_its_store_is_told_why_not() {
        let (from, to) = (store(1), store(2));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(RaftServer::new(Door(to.handle.clone())));
        let tasks = Tasks::default();
        tasks.run("server", async { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
        let carry = async |snapshot: Outgoing, address: &str| {
            let head = SnapshotHead { message: Some(snapshot.message().clone()), ..SnapshotHead::default() };
            send(Arc::default(), address.into(), head, snapshot).await;
        };

        carry(outgoing(&from, 1, 40), &address).await;
        assert_eq!(outcome(&from), Ok(()));
        assert!(matches!(&to.handle.take_events()[..], [Event::SnapshotArrived(_)]));
        assert_eq!(to.engine.files().folders().unwrap().len(), 1);

        carry(outgoing(&from, 2, 5), &address).await;
        let refusal = outcome(&from).unwrap_err();
        assert!(refusal.contains("has applied"), "{refusal}");
        carry(outgoing(&from, 3, 40), "127.0.0.1:1").await;
        assert!(outcome(&from).is_err(), "nobody listens there");
        assert_eq!(to.engine.files().folders().unwrap().len(), 1, "nothing of it is left");
    }
}
