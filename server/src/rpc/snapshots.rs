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
use node::Node;
use proto::wire::{SnapshotChunk, SnapshotHead, snapshot_chunk::Kind};
use raftstore::{MonotonicClock, snapshot::Outgoing};
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

/// Takes a snapshot from its stream; the reason, when it was not taken.
pub(super) async fn receive(node: &Node, mut chunks: Streaming<SnapshotChunk>) -> Result<(), String> {
    let Some(Kind::Head(head)) = next(&mut chunks).await? else {
        return Err("the stream does not begin with a head".into());
    };
    let mut receiving = node.receive_snapshot(head)?;
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
