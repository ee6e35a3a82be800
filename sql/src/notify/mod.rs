//! LISTEN and NOTIFY between the sessions of all nodes, with PostgreSQL's promises: sent when and only when the transaction commits,
//! in the order of the commits, each to everybody who listens.
//!
//! ```text
//!   COMMIT   lock the row with the newest number ─► write the notifications behind it ─► commit ─► poke all gateways
//!   gateway  poked, or after a while: a newer number? ─► read what is behind the last one seen ─► to its sessions
//! ```
//!
//! The number's row makes transactions with notifications commit one after the other, as PostgreSQL's lock on its queue does; numbers
//! have no gaps, so a listener sees when it has missed something that was deleted already: its session is
//! ended rather than left in the belief that nothing happened. A poke is only news early: what it
//! does not reach asks by itself.

pub mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::select};
use kv::{CommitOptions, Floor, OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use self::record::{Change, Notification, Pending, Place};
use self::record::{decode, encode, newest_key, number_of, sent_after, sent_key};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    gateway::GatewayConfig,
    session::Backend,
};

/// How long news takes at most when a poke was lost.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long notifications stay: a gateway that is silent for so long has missed some.
const KEPT: Duration = Duration::from_secs(60);
/// How long a session that listens to itself waits for its own notifications before its COMMIT is answered.
const OWN_PATIENCE: Duration = Duration::from_secs(1);

fn damaged() -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, "a notification's record is damaged")
}

fn number(value: Option<Bytes>) -> SqlResult<u64> {
    let Some(value) = value else { return Ok(0) };
    value[..].try_into().map(u64::from_be_bytes).map_err(|_| damaged())
}

/// Puts notifications into a transaction that is about to commit; the number of the last one.
pub async fn write(txn: &Txn, pid: u32, said: Vec<(String, String)>) -> SqlResult<u64> {
    let label = Bytes::from_static(b"NOTIFY");
    let lock = RowLock { mode: RowLockMode::Update, on_locked: OnLocked::Wait, absent: true, label };
    let locked = txn.lock_rows(&[newest_key()], &lock).await?;
    let mut newest = number(locked.into_iter().next().and_then(|row| row.value))?;
    for (channel, payload) in said {
        newest += 1;
        txn.put(sent_key(newest), encode(&Notification { pid, channel, payload }))?;
    }
    txn.put(newest_key(), newest.to_be_bytes().to_vec())?;
    Ok(newest)
}

/// The sessions of a gateway that listen.
pub struct Channels {
    config: GatewayConfig,
    state: Mutex<State>,
    poked: Notify,
    /// Everything up to this number has been handed out; `None` while nobody listens.
    seen: watch::Sender<Option<u64>>,
}

#[derive(Default)]
struct State {
    /// By process id.
    listeners: BTreeMap<u32, (Arc<Backend>, BTreeSet<String>)>,
}

impl Channels {
    /// Nobody listens yet.
    pub(crate) fn new(config: GatewayConfig) -> Arc<Self> {
        let (seen, poked) = (watch::Sender::new(None), Notify::new());
        Arc::new(Channels { config, state: Mutex::default(), poked, seen })
    }

    /// Carries a committed transaction's LISTENs and UNLISTENs out. What is committed after a LISTEN is told.
    pub(crate) async fn apply(self: &Arc<Self>, backend: &Arc<Backend>, changes: Vec<Change>) -> SqlResult<()> {
        for change in changes {
            match change {
                Change::Listen(channel) => self.listen(backend, channel).await?,
                Change::Unlisten(channel) => self.unlisten(backend.pid, Some(&channel)),
                Change::UnlistenAll => self.unlisten(backend.pid, None),
            }
        }
        Ok(())
    }

    async fn listen(self: &Arc<Self>, backend: &Arc<Backend>, channel: String) -> SqlResult<()> {
        let newest = number(self.config.client.get_latest(&newest_key()).await?)?;
        let mut state = self.state.lock();
        let listener = state.listeners.entry(backend.pid).or_insert_with(|| (Arc::clone(backend), BTreeSet::new()));
        listener.1.insert(channel);
        // Under the lock: the task stops under it, too.
        if self.seen.borrow().is_none() {
            self.seen.send_replace(Some(newest));
            let this = Arc::clone(self);
            self.config.spawn.spawn(async move { this.follow().await }.boxed());
        }
        Ok(())
    }

    /// `None`: all channels.
    pub(crate) fn unlisten(&self, pid: u32, channel: Option<&str>) {
        let mut state = self.state.lock();
        let Some((_, channels)) = state.listeners.get_mut(&pid) else { return };
        match channel {
            Some(channel) => drop(channels.remove(channel)),
            None => channels.clear(),
        }
        if channels.is_empty() {
            state.listeners.remove(&pid);
        }
    }

    /// Notifications up to this number were committed by a session of this gateway: everybody is told that there are some. A
    /// session that listens itself has its own before its COMMIT is answered.
    pub(crate) async fn sent(self: &Arc<Self>, pid: u32, first: u64, last: u64) {
        self.poke();
        let client = self.config.client.clone();
        let poke = async move {
            if let Err(error) = client.poke_listeners().await {
                tracing::debug!(%error, "other nodes were not told of notifications; they ask by themselves");
            }
        };
        self.config.spawn.spawn(poke.boxed());
        self.forget_later(first, last);
        if self.state.lock().listeners.contains_key(&pid) {
            let mut seen = self.seen.subscribe();
            let told = seen.wait_for(|seen| seen.is_none_or(|seen| seen >= last)).map(|_| ());
            select(std::pin::pin!(told), self.config.clock.sleep(OWN_PATIENCE)).await;
        }
    }

    /// There may be news.
    pub(crate) fn poke(&self) {
        self.poked.notify_one();
    }

    fn forget_later(&self, first: u64, last: u64) {
        let GatewayConfig { client, clock, .. } = self.config.clone();
        let forget = async move {
            clock.sleep(KEPT).await;
            let forgotten = async {
                let txn = client.begin().await?;
                (first..=last).try_for_each(|number| txn.delete(sent_key(number)))?;
                txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await
            };
            if let Err(error) = forgotten.await {
                // The next listener that follows deletes what it finds before its beginning.
                tracing::warn!(first, last, %error, "old notifications were not deleted");
            }
        };
        self.config.spawn.spawn(forget.boxed());
    }

    /// Hands out what is new, as long as somebody listens.
    async fn follow(&self) {
        loop {
            select(std::pin::pin!(self.poked.notified()), self.config.clock.sleep(ASK_EVERY)).await;
            let position = {
                let state = self.state.lock();
                if state.listeners.is_empty() {
                    self.seen.send_replace(None);
                    return;
                }
                self.seen.borrow().unwrap_or_default()
            };
            match self.news(position).await {
                Ok(None) => {}
                Ok(Some(news)) => {
                    let last = position + news.len() as u64;
                    self.hand_out(&news);
                    self.seen.send_replace(Some(last));
                }
                Err(error) if error.sqlstate == SqlState::OUT_OF_MEMORY => self.lose(&error),
                Err(error) => tracing::warn!(%error, "notifications were not read; they are asked for again"),
            }
        }
    }

    /// What is behind a number, without a gap; `None`: nothing. 53200 when some of it is deleted already.
    async fn news(&self, position: u64) -> SqlResult<Option<Vec<Notification>>> {
        let client = &self.config.client;
        if number(client.get_latest(&newest_key()).await?)? == position {
            return Ok(None);
        }
        let txn = client.begin().await?;
        let newest = number(txn.get(&newest_key()).await?)?;
        let mut scan = txn.scan(ScanOptions { range: sent_after(position), ..ScanOptions::default() });
        let mut news = Vec::new();
        while let Some(page) = scan.next_page().await? {
            for (key, value) in page.rows {
                if number_of(&key) != Some(position + news.len() as u64 + 1) {
                    return Err(lost());
                }
                news.push(decode(value).ok_or_else(damaged)?);
            }
        }
        if position + (news.len() as u64) < newest {
            return Err(lost());
        }
        Ok(Some(news))
    }

    fn hand_out(&self, news: &[Notification]) {
        let state = self.state.lock();
        for (backend, channels) in state.listeners.values() {
            for notification in news.iter().filter(|notification| channels.contains(&notification.channel)) {
                backend.tell(notification.clone());
            }
        }
    }

    /// Nobody who listens knows what it has missed: all of them end.
    fn lose(&self, why: &SqlError) {
        let mut state = self.state.lock();
        for (_, (backend, _)) in std::mem::take(&mut state.listeners) {
            backend.cancel.terminate(why.clone());
        }
    }
}

fn lost() -> SqlError {
    SqlError::new(SqlState::OUT_OF_MEMORY, "terminating connection because notifications were lost")
        .with_detail(format!("This node did not follow for {} seconds.", KEPT.as_secs()))
        .with_hint("Connect again, LISTEN again, and look at what the notifications would have been about.")
        .fatal()
}
