//! The safe point's steps, where PD is.

use std::{sync::Arc, time::Duration};

use futures::future::{Either, select};
use kv::Clock;
use proto::Timestamp;

use crate::pd::role::{PdRole, now};

/// How often it is looked whether a step is due.
const PAUSE: Duration = Duration::from_secs(1);
/// How long locks below a safe point are looked for before that begins anew: a transaction may hold its lock, or PD be
/// elsewhere. Ten thousand regions take some minutes.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// The steps of one node, while it is PD.
pub struct Rounds {
    /// Whether it is.
    pub role: Arc<PdRole>,
    /// Looks for locks.
    pub client: kv::Client,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Rounds {
    /// Goes on until the node stops.
    pub async fn run(self) {
        loop {
            self.clock.sleep(PAUSE).await;
            let Some(pd) = self.role.service() else { continue };
            match pd.next_safe_point(now(&*self.clock)).await {
                Ok(None) => {}
                Ok(Some(safe_point)) => {
                    if self.end_locks(safe_point).await {
                        pd.locks_cleared(safe_point);
                    }
                }
                Err(error) => tracing::debug!(%error, "no safe point could be chosen"),
            }
        }
    }

    /// Ends all locks of transactions that began below; whether none is left.
    async fn end_locks(&self, safe_point: Timestamp) -> bool {
        let ending = std::pin::pin!(self.client.finish_older(safe_point));
        match select(ending, self.clock.sleep(PATIENCE)).await {
            Either::Left((Ok(()), _)) => true,
            Either::Left((Err(error), _)) => {
                tracing::info!(%safe_point, %error, "locks below the GC safe point could not be ended yet");
                false
            }
            Either::Right(_) => false,
        }
    }
}
