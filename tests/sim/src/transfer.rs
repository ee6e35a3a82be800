//! Snapshots over links: every block is a call, and any of them may be lost, cut off or bent.

use std::sync::Arc;

use parking_lot::Mutex;
use proto::wire::SnapshotBlock;
use raftstore::snapshot::{Outgoing, Receiving};

use crate::{
    network::{CallFailure, Network},
    runtime::{NodeIndex, World},
};

/// What the receiver has of it, in the life in which it began.
type Slot = Arc<Mutex<Option<Receiving>>>;

/// One transfer.
pub struct Transfer {
    /// The run.
    pub world: World,
    /// The links.
    pub network: Network,
    /// The sender.
    pub from: NodeIndex,
    /// The receiver.
    pub to: NodeIndex,
}

impl Transfer {
    /// Carries `snapshot`; `begin` runs as the receiver.
    pub fn start(self, mut snapshot: Outgoing, begin: impl FnOnce() -> Result<Receiving, String> + Send + 'static) {
        let Some(owner) = self.world.owner(self.from) else { return };
        self.world.clone().spawn(owner, async move {
            let outcome = self.carry(&mut snapshot, begin).await;
            let what = if outcome.is_ok() { "snapshots sent" } else { "snapshot transfers broken" };
            self.world.count(what, 1);
            snapshot.finish(outcome);
        });
    }

    async fn carry(
        &self,
        snapshot: &mut Outgoing,
        begin: impl FnOnce() -> Result<Receiving, String> + Send + 'static,
    ) -> Result<(), String> {
        let slot = Slot::default();
        let receiving = slot.clone();
        self.call("snapshot begins", move || {
            *receiving.lock() = Some(begin()?);
            Ok(())
        })
        .await?;
        while let Some(mut block) = snapshot.next_block().map_err(|e| e.to_string())? {
            if self.network.bends() {
                self.world.count("snapshot blocks bent", 1);
                bend(&mut block);
            }
            let receiving = slot.clone();
            self.call("snapshot block", move || in_slot(&receiving, |receiving| receiving.block(&block))).await?;
        }
        self.call("snapshot ends", move || slot.lock().take().ok_or("it was broken off")?.finish()).await
    }

    /// Runs `work` as the receiver.
    async fn call(
        &self,
        label: &'static str,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        let answer = self.network.call(self.from, self.to, label, move || async move { work() }).await;
        answer.unwrap_or_else(|failure| match failure {
            CallFailure::Unreachable => Err("unreachable".into()),
            CallFailure::Lost => Err("the connection broke".into()),
        })
    }
}

fn in_slot(slot: &Slot, work: impl FnOnce(&mut Receiving) -> Result<(), String>) -> Result<(), String> {
    let mut receiving = slot.lock();
    let result = work(receiving.as_mut().ok_or("it was broken off")?);
    if result.is_err() {
        // As when a stream ends: what there is goes.
        *receiving = None;
    }
    result
}

fn bend(block: &mut SnapshotBlock) {
    let mut data = block.data.to_vec();
    if let Some(last) = data.last_mut() {
        *last ^= 1;
    }
    block.data = data.into();
}
