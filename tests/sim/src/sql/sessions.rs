//! Workloads of sessions that do one thing after the other. What is refused, or of unknown outcome, does not matter to them:
//! they are judged by what is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sql::SqlError;

use super::SqlClient;
use crate::{
    runtime::World,
    workload::{Seat, Workload},
};

/// What the sessions of a workload do.
pub trait Deeds: Default + Send + Sync + 'static {
    /// Between two of a session.
    const PAUSE_MAX: Duration;

    /// Makes what they need; an earlier attempt may have got so far.
    fn prepare(&self, client: &mut SqlClient) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Does one; what it is called when they are counted.
    fn perform(
        &self,
        client: &mut SqlClient,
        seat: &mut Seat,
    ) -> impl Future<Output = Result<&'static str, SqlError>> + Send;

    /// What one that was refused is called.
    fn refusal(error: &SqlError) -> &'static str;

    /// Where a region may be cut.
    fn border(rng: &mut ChaCha8Rng) -> Bytes {
        super::border(rng)
    }

    /// When nobody begins any more: whether what is there is right. An error: it can't be said yet.
    fn judge(
        &self,
        client: &mut SqlClient,
        world: &World,
    ) -> impl Future<Output = Result<Result<(), String>, SqlError>> + Send;
}

/// The workload.
#[derive(Default)]
pub struct Sessions<D> {
    deeds: D,
    stopped: AtomicBool,
}

impl<D: Deeds> Workload<SqlClient> for Sessions<D> {
    fn prepare(self: Arc<Self>, mut client: SqlClient) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { self.deeds.prepare(&mut client).await.map_err(|error| error.to_string()) })
    }

    fn session(self: Arc<Self>, mut client: SqlClient, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.stopped.load(Ordering::Relaxed) {
                let done = self.deeds.perform(&mut client, &mut seat).await;
                let (now, owner) = (seat.world.now(), seat.owner);
                let what = match &done {
                    Ok(what) => {
                        tracing::debug!(?now, ?owner, what, "done");
                        what
                    }
                    Err(error) => {
                        tracing::debug!(?now, ?owner, %error, detail = error.detail, "refused");
                        D::refusal(error)
                    }
                };
                seat.world.count(what, 1);
                let pause = seat.rng.random_range(Duration::ZERO..D::PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(D::border(rng))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn judge(
        self: Arc<Self>,
        mut client: SqlClient,
        world: World,
    ) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move { self.deeds.judge(&mut client, &world).await.map_err(|error| error.to_string()) })
    }
}
