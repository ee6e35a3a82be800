//! A proposal under way, with what must be held until its fate is known.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use proto::Batch;
use raftstore::{ProposeError, Target};

use crate::{RegionStore, Spawn};

/// Completes with the proposal's result. Dropped before, the proposal goes on in the background, and what it holds stays
/// held: were latches or in-memory locks let go while the batch may still be applied, the next write would not see it.
pub(super) struct Proposal {
    running: Option<BoxFuture<'static, Result<(), ProposeError>>>,
    spawn: Arc<dyn Spawn>,
}

impl Proposal {
    /// Proposes. `then` is called with whether the batch was applied, when it is or the store says why it is not; it holds
    /// what must be held until then.
    pub(super) fn start(
        store: Arc<dyn RegionStore>,
        spawn: Arc<dyn Spawn>,
        target: Target,
        batch: Batch,
        then: impl FnOnce(bool) + Send + 'static,
    ) -> Self {
        let running = async move {
            let result = store.propose(&target, batch).await;
            then(result.is_ok());
            result
        };
        Proposal { running: Some(running.boxed()), spawn }
    }
}

impl Future for Proposal {
    type Output = Result<(), ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let running = self.running.as_mut().expect("a proposal is not polled after its result");
        let result = running.as_mut().poll(cx);
        if result.is_ready() {
            self.running = None;
        }
        result
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.spawn.spawn(running.map(|_| ()).boxed());
        }
    }
}
