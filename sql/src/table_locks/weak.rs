//! Waiting at a barrier, for a weak lock.

use std::{pin::pin, time::Duration};

use futures::future::{Either, select};
use kv::{RowLockMode, Txn};

use super::{
    Ask, FIRST_PAUSE, MAX_PAUSE, Mode, Modes, TableLocks, read,
    record::{self, Holder},
};
use crate::error::SqlResult;

/// Of so many looks at the record one asks all nodes whether who stands in it lives.
const LOOKS_FOR_DEAD: u32 = 10;

/// A use that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub table: u32,
    pub mode: Mode,
    /// What the transaction has of the table already.
    pub held: Modes,
}

impl TableLocks {
    /// Waits until no barrier is in the way, for the transaction `txn`; `false`: there is one, and nobody waits.
    pub(crate) async fn wait(&self, txn: &Txn, wanted: Wanted, ask: &Ask) -> SqlResult<bool> {
        if !ask.wait {
            self.look(wanted, false).await?;
            return Ok(!self.is_stopped(wanted));
        }
        let key = [record::queue_key(wanted.table)];
        let row_mode = if wanted.mode == Mode::RowExclusive { RowLockMode::NoKeyUpdate } else { RowLockMode::KeyShare };
        let lock = ask.row_lock(row_mode);
        let mut lowered = pin!(self.lowered(wanted, ask));
        let waited = match select(lowered.as_mut(), pin!(txn.lock_rows(&key, &lock))).await {
            Either::Left((lowered, _)) => lowered,
            // First in the queue, which may have been lost with its leader: the barrier decides.
            Either::Right((Ok(_), _)) => lowered.await,
            Either::Right((Err(error), _)) => Err(error.into()),
        };
        if self.modes(wanted.table).is_empty() {
            txn.give_up_rows(&key).await;
        }
        waited.map(|()| true)
    }

    fn is_stopped(&self, Wanted { table, mode, held }: Wanted) -> bool {
        self.catalog.barriers().stop(table, mode, held, self.me)
    }

    /// Until no barrier is in the way. What the record does not know stands for nobody.
    async fn lowered(&self, wanted: Wanted, ask: &Ask) -> SqlResult<()> {
        let until = ask.until(&*self.config.clock);
        let (mut pause, mut looks) = (FIRST_PAUSE, 0);
        while self.is_stopped(wanted) {
            if until.is_some_and(|until| self.config.clock.now() >= until) {
                return Err(kv::Error::LockTimeout.into());
            }
            self.called(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            if pause == MAX_PAUSE {
                looks += 1;
                self.look(wanted, looks % LOOKS_FOR_DEAD == 0).await?;
            }
        }
        Ok(())
    }

    async fn called(&self, pause: Duration) {
        select(pin!(self.catalog.barriers().lowered()), self.config.clock.sleep(pause)).await;
    }

    /// Lowers barriers that stand for nobody; with `thorough` also those of sessions that have died.
    async fn look(&self, wanted: Wanted, thorough: bool) -> SqlResult<()> {
        // Seen before the record is read: a barrier of somebody who has entered since is none of them.
        let seen = self.catalog.barriers().on(wanted.table);
        let against = seen.iter().filter(|holder| holder.session != self.me && holder.modes.exclude(wanted.mode));
        let against: Vec<Holder> = against.copied().collect();
        if against.is_empty() {
            return Ok(());
        }
        let record = read(&self.config.client.begin().await?, wanted.table).await?;
        let stands = |holder: &Holder| record.iter().any(|known| known.session == holder.session);
        let (stand, mut gone): (Vec<Holder>, Vec<Holder>) = against.into_iter().partition(stands);
        if thorough {
            gone.extend(self.dead(&stand).await?);
        }
        self.catalog.barriers().lower(wanted.table, &gone);
        Ok(())
    }
}
