//! Taking a strong lock, and giving it back.

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{Either, join3, select},
};
use kv::{DetachedRows, Instant, RowLockMode, Txn};
use proto::{
    Timestamp,
    wire::{CallBackRequest, GatewayResponse, HandBackRequest, TableUse},
};

use super::{
    Ask, FIRST_LOOK, FIRST_PAUSE, Fence, LOOK, MAX_LOCKS, MAX_PAUSE, Mode, Modes, TableLocks, read,
    record::{self, Holder, SessionId},
    write,
};
use crate::{
    catalog::store,
    error::{SqlError, SqlResult, SqlState},
};

/// A lock that is being taken; given back when that ends otherwise.
struct Taking<'a> {
    locks: &'a Arc<TableLocks>,
    table: u32,
    taken: bool,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.locks.give_back([self.table], None);
        }
    }
}

/// What a round of questions to all gateways has found.
struct Round {
    /// Every gateway that may live has acknowledged.
    done: bool,
    /// Transactions that are in the way.
    in_the_way: Vec<Timestamp>,
}

impl TableLocks {
    /// Takes a lock in a strong mode for the transaction `txn`, whose session has `fence`; `false`: not without waiting.
    /// 40P01, 55P03 as for row locks.
    pub(crate) async fn take(
        self: &Arc<Self>,
        txn: &Txn,
        fence: &Fence,
        (table, mode): (u32, Mode),
        ask: &Ask,
    ) -> SqlResult<bool> {
        self.left().await;
        {
            let state = self.state.lock();
            if state.modes(table).cover(mode) {
                return Ok(true);
            }
            if state.held.len() >= MAX_LOCKS {
                return Err(SqlError::new(SqlState::OUT_OF_MEMORY, "out of shared memory")
                    .with_hint(format!("A transaction has at most {MAX_LOCKS} strong table locks.")));
            }
        }
        let lapses = self.catalog.lapses();
        let until = ask.until(&*self.config.clock);
        let row_mode = if mode == Mode::Share { RowLockMode::Share } else { RowLockMode::Update };
        let mut taking = Taking { locks: self, table, taken: false };
        match txn.lock_rows(&[record::queue_key(table)], &ask.row_lock(row_mode)).await {
            Ok(_) => {}
            Err(kv::Error::RowLocked { .. }) if !ask.wait => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let modes = self.modes(table).with(mode);
        let me = Holder { session: self.me, turn: self.state.lock().next_turn(), modes };
        if !(self.enter(table, me, mode, (ask, until)).await?
            && self.call_back(txn, (table, me), mode, (ask, until)).await?)
        {
            return Ok(false);
        }
        fence.hold(table, mode);
        self.state.lock().held.push((table, mode));
        taking.taken = true;
        // A lease that runs out from here on dooms the fence.
        match self.catalog.lapses() == lapses && self.catalog.holds() {
            true => Ok(true),
            false => Err(SqlError::serialization("The gateway's catalog lease ran out.")),
        }
    }

    /// Enters a table's record as soon as nobody who lives stands in it against `mode`.
    async fn enter(
        &self,
        table: u32,
        me: Holder,
        mode: Mode,
        (ask, until): (&Ask, Option<Instant>),
    ) -> SqlResult<bool> {
        let mut pause = FIRST_PAUSE;
        loop {
            let txn = self.config.client.begin().await?;
            let mut holders = read(&txn, table).await?;
            let against = holders.iter().filter(|other| other.session != self.me && other.modes.exclude(mode));
            let against: Vec<Holder> = against.copied().collect();
            let dead = self.dead(&against).await?;
            if dead.len() < against.len() {
                if !ask.wait {
                    return Ok(false);
                }
                self.pause(&mut pause, until).await?;
                continue;
            }
            holders.retain(|other| other.session != self.me && !dead.contains(other));
            holders.push(me);
            if write(txn, table, &holders).await? {
                self.bury(table, dead).await?;
                return Ok(true);
            }
        }
    }

    async fn pause(&self, pause: &mut std::time::Duration, until: Option<Instant>) -> SqlResult<()> {
        if until.is_some_and(|until| self.config.clock.now() >= until) {
            return Err(kv::Error::LockTimeout.into());
        }
        self.config.clock.sleep(*pause).await;
        *pause = (*pause * 2).min(MAX_PAUSE);
        Ok(())
    }

    /// Those whose session has ended, and can't commit any more.
    pub(super) async fn dead(&self, holders: &[Holder]) -> SqlResult<Vec<Holder>> {
        let mut dead = Vec::new();
        if holders.is_empty() {
            return Ok(dead);
        }
        let gateways = self.config.client.gateways().await?;
        let mut alive: Option<Vec<u64>> = None;
        for holder in holders {
            let SessionId { gateway, pid } = holder.session;
            let lives = match gateways.iter().find(|(_, known)| known.gateway_id == gateway) {
                Some((_, known)) => known.sessions.iter().any(|session| session.pid == pid),
                None => {
                    if alive.is_none() {
                        alive = Some(self.config.pd.live_gateways().await?);
                    }
                    alive.iter().flatten().any(|live| *live == gateway || *live == 0)
                }
            };
            if !lives {
                dead.push(*holder);
            }
        }
        Ok(dead)
    }

    /// What the dead had changed of the schema, and not told anybody, is told now; nobody waits for them any more.
    async fn bury(&self, table: u32, dead: Vec<Holder>) -> SqlResult<()> {
        if dead.is_empty() {
            return Ok(());
        }
        let version = store::version(&self.config.client.begin().await?).await?;
        self.config.pd.publish_catalog(version).await?;
        self.catalog.reached(version).await;
        for holder in dead {
            self.spread(table, Holder { modes: Modes::default(), ..holder });
        }
        Ok(())
    }

    /// Has every gateway that may live acknowledge the lock.
    async fn call_back(
        &self,
        txn: &Txn,
        (table, me): (u32, Holder),
        mode: Mode,
        (ask, until): (&Ask, Option<Instant>),
    ) -> SqlResult<bool> {
        let clock = &self.config.clock;
        let mut acknowledged = BTreeSet::new();
        let (mut look, mut in_the_way) = (FIRST_LOOK, Vec::new());
        loop {
            let began = clock.now();
            let asked = self.ask_gateways((table, me, mode), look, &mut acknowledged);
            let round = self.unless_ended(asked, (txn, table, &in_the_way), (ask, until)).await?;
            if round.done || !ask.wait {
                return Ok(round.done);
            }
            if round.in_the_way.is_empty() && clock.now().since(began) < MAX_PAUSE {
                // A gateway is silent: it may be gone, which takes a while to be certain.
                clock.sleep(MAX_PAUSE).await;
            }
            (look, in_the_way) = (LOOK, round.in_the_way);
        }
    }

    /// A round, unless the time is over, or those in the way wait for `txn` themselves.
    async fn unless_ended(
        &self,
        round: impl Future<Output = SqlResult<Round>>,
        (txn, table, in_the_way): (&Txn, u32, &[Timestamp]),
        (ask, until): (&Ask, Option<Instant>),
    ) -> SqlResult<Round> {
        let (clock, key) = (&self.config.clock, record::queue_key(table));
        let behind = async {
            match in_the_way.is_empty() {
                true => std::future::pending().await,
                false => txn.wait_behind(&key, in_the_way, &ask.label).await,
            }
        };
        let late = async {
            match until {
                Some(until) => clock.sleep(until.since(clock.now())).await,
                None => std::future::pending().await,
            }
        };
        let (behind, late) = (pin!(behind), pin!(late));
        match select(pin!(round), select(behind, late)).await {
            Either::Left((round, _)) => round,
            Either::Right((Either::Left((error, _)), _)) => Err(error.into()),
            Either::Right((Either::Right(_), _)) => Err(kv::Error::LockTimeout.into()),
        }
    }

    async fn ask_gateways(
        &self,
        (table, me, mode): (u32, Holder, Mode),
        look: std::time::Duration,
        acknowledged: &mut BTreeSet<u64>,
    ) -> SqlResult<Round> {
        let request = CallBackRequest {
            table,
            gateway_id: self.me.gateway,
            pid: self.me.pid,
            modes: me.modes.bits().into(),
            turn: me.turn,
            wait_ms: look.as_millis() as u64,
        };
        let own = async {
            let uses = self.catalog.called_back(table, me, look).await;
            GatewayResponse { gateway_id: self.me.gateway, uses, ..GatewayResponse::default() }
        };
        let live = self.config.pd.live_gateways();
        let (answers, live, own) = join3(self.config.client.call_back(request), live, own).await;
        let mut in_the_way = Vec::new();
        for answer in answers?.into_iter().filter(|answer| answer.gateway_id != self.me.gateway).chain([own]) {
            let stands = |used: &&TableUse| Modes::from_bits(used.modes as u8).exclude(mode);
            let against: Vec<&TableUse> = answer.uses.iter().filter(stands).collect();
            if against.is_empty() {
                acknowledged.insert(answer.gateway_id);
            }
            in_the_way
                .extend(against.iter().filter(|used| used.transaction != 0).map(|used| Timestamp(used.transaction)));
        }
        Ok(Round { done: live?.iter().all(|gateway| acknowledged.contains(gateway)), in_the_way })
    }

    /// The places in queues leave the transaction, which ends: they are for [`TableLocks::end`]. `None`: there are none.
    pub(crate) fn detach(&self, txn: &Txn) -> Option<DetachedRows> {
        let held = &self.state.lock().held;
        let queues: Vec<Bytes> = held.iter().map(|(table, _)| record::queue_key(*table)).collect();
        (!queues.is_empty()).then(|| txn.detach_rows(&queues))
    }

    /// The transaction has ended: its locks are given back, in the background, and then its places in queues.
    pub(crate) fn end(self: &Arc<Self>, queues: Option<DetachedRows>) {
        self.give_back(self.held_since(0), queues);
    }

    /// The transaction goes back to a place: later locks are given back, in the background.
    pub(crate) fn end_since(self: &Arc<Self>, place: usize) {
        self.give_back(self.held_since(place), None);
    }

    /// Tables locked since a place, of which the session counts nothing more.
    fn held_since(&self, place: usize) -> BTreeSet<u32> {
        let mut state = self.state.lock();
        let place = place.min(state.held.len());
        state.held.split_off(place).into_iter().map(|(table, _)| table).collect()
    }

    /// Until what is being given back is given back.
    pub(crate) async fn left(&self) {
        let leaving = self.state.lock().leaving.clone();
        if let Some(leaving) = leaving {
            leaving.await;
        }
    }

    /// Starts to give back what the session does not count any more of these tables.
    fn give_back(self: &Arc<Self>, tables: impl IntoIterator<Item = u32>, queues: Option<DetachedRows>) {
        let tables: Vec<u32> = tables.into_iter().collect();
        if tables.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let (before, this) = (state.leaving.take(), Arc::clone(self));
        let left: Vec<(u32, Holder)> = tables
            .into_iter()
            .map(|table| {
                let turn = state.next_turn();
                (table, Holder { session: self.me, turn, modes: state.modes(table) })
            })
            .collect();
        let leaving = async move {
            if let Some(before) = before {
                before.await;
            }
            for (table, holder) in left {
                this.leave(table, holder).await;
            }
            drop(queues);
        };
        let leaving = leaving.boxed().shared();
        state.leaving = Some(leaving.clone());
        self.config.spawn.spawn(leaving.boxed());
    }

    /// Until the record says what the session has. One that could not say so for long is found out when its session has ended.
    async fn leave(self: &Arc<Self>, table: u32, holder: Holder) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_leave(table, holder).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(table, %error, "a table lock is not given back yet"),
            }
            self.config.clock.sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        self.catalog.barriers().set(table, holder);
        self.spread(table, holder);
    }

    async fn try_leave(&self, table: u32, holder: Holder) -> SqlResult<bool> {
        let txn = self.config.client.begin().await?;
        let mut holders = read(&txn, table).await?;
        let before = holders.len();
        holders.retain(|known| known.session != self.me);
        if holders.len() == before {
            return Ok(true);
        }
        if !holder.modes.is_empty() {
            holders.push(holder);
        }
        write(txn, table, &holders).await
    }

    /// Tells other gateways, in the background. One that is not told looks by itself.
    fn spread(&self, table: u32, holder: Holder) {
        let client = self.config.client.clone();
        let SessionId { gateway, pid } = holder.session;
        let modes = holder.modes.bits().into();
        let spread = async move {
            let message = HandBackRequest { table, gateway_id: gateway, pid, modes, turn: holder.turn };
            if let Err(error) = client.hand_back(message).await {
                tracing::debug!(table, %error, "gateways were not told of a table lock's end");
            }
        };
        self.config.spawn.spawn(spread.boxed());
    }
}
