//! What was so at a timestamp is so whoever is asked, wherever and whenever: money moves, and sessions of all nodes look at
//! the same moments of the past again and again, from the nearest replica or from leaders.
//!
//! Judged by the sum, by what was acknowledged before a moment, and by every other look at it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::Timestamp;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{
    Seat, Workload,
    bank::{self, ACCOUNTS, Accounts, INITIAL, Outcome, TABLES},
};
use crate::{
    check::ledger::{self, Transfer},
    cluster::nodes::HASTY_GC,
    runtime::World,
};

/// How long a moment is looked at: less than old versions are kept.
const AGE_MAX: Duration = Duration::from_secs(7);
/// Most looks are at moments that are younger: there followers are just not as far.
const YOUNG: Duration = Duration::from_millis(2_000);
/// Old versions are kept for so long, ms.
const RETENTION_MS: u64 = 10_000;
/// Acknowledged transfers that a look looks for.
const SOUGHT: usize = 3;
/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(60);
/// So that a scan takes several pages.
const PAGE_BYTES: u64 = 60;

/// What PD strives for: old versions go, but not while they are looked at. It moves nothing by itself.
pub fn rules() -> node::Rules {
    let mut rules =
        node::Rules { gc: node::GcRules { retention_ms: RETENTION_MS, ..HASTY_GC }, ..node::Rules::default() };
    rules.limits.operators = 0;
    rules
}

/// A moment of the past.
#[derive(Clone)]
struct Moment {
    ts: Timestamp,
    taken: Duration,
    /// So many transfers had been acknowledged before.
    acknowledged: usize,
    /// What the first look saw.
    seen: Option<BTreeMap<u64, u64>>,
}

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_transfer: u64,
    /// Id and payer.
    acknowledged: Vec<(u64, u64)>,
    moments: VecDeque<Moment>,
}

/// The workload.
#[derive(Default)]
pub struct Past(Mutex<Notes>);

/// How the past is looked at.
#[derive(Clone, Copy, Debug)]
enum Way {
    OneByOne,
    Together,
    Scan,
}

async fn look(txn: &kv::Txn, way: Way) -> Result<BTreeMap<u64, u64>, kv::Error> {
    let mut seen = BTreeMap::new();
    match way {
        Way::OneByOne => {
            for account in 0..ACCOUNTS {
                seen.extend(
                    txn.get(&bank::account_key(account)).await?.map(|value| (account, bank::balance(Some(value)))),
                );
            }
        }
        Way::Together => {
            let keys: Vec<Bytes> = (0..ACCOUNTS).map(bank::account_key).collect();
            let values = txn.get_many(&keys).await?;
            let numbers = (0..).zip(values).filter_map(|(account, value)| Some((account, bank::balance(Some(value?)))));
            seen.extend(numbers);
        }
        Way::Scan => {
            for table in 0..TABLES {
                let range = bank::index_range(table, 1);
                let mut scan = txn.scan(kv::ScanOptions { range, page_bytes: PAGE_BYTES, ..Default::default() });
                while let Some(page) = scan.next_page().await? {
                    seen.extend(
                        page.rows.iter().map(|(key, value)| (bank::record_id(key), bank::balance(Some(value.clone())))),
                    );
                }
            }
        }
    }
    Ok(seen)
}

impl Past {
    async fn transfer(&self, client: &mut kv::Client, seat: &mut Seat) {
        let from = seat.rng.random_range(0..ACCOUNTS);
        // Half of them commit in one round.
        let to = match seat.rng.random_bool(0.5) {
            true => (from + TABLES) % ACCOUNTS,
            false => (from + seat.rng.random_range(1..ACCOUNTS)) % ACCOUNTS,
        };
        let amount = seat.rng.random_range(1..=INITIAL / 4);
        let id = {
            let mut notes = self.0.lock();
            notes.next_transfer += 1;
            notes.next_transfer
        };
        if let Outcome::Done(()) = client.transfer(id, Transfer { from, to, amount }).await {
            seat.world.count("transfers", 1);
            self.0.lock().acknowledged.push((id, from));
        }
    }

    /// Others shall look at this moment.
    async fn take_moment(&self, client: &kv::Client, seat: &Seat) {
        let (acknowledged, taken) = (self.0.lock().acknowledged.len(), seat.world.now());
        let Ok(ts) = client.timestamp().await else { return };
        let mut notes = self.0.lock();
        notes.moments.retain(|moment| taken.saturating_sub(moment.taken) < AGE_MAX);
        notes.moments.push_back(Moment { ts, taken, acknowledged, seen: None });
    }

    /// A moment, and the transfers that must be there.
    fn pick(&self, seat: &mut Seat) -> Option<(Moment, Vec<(u64, u64)>)> {
        let (now, young) = (seat.world.now(), seat.rng.random_bool(0.5));
        let age = if young { YOUNG } else { AGE_MAX };
        let notes = self.0.lock();
        let fit = || notes.moments.iter().filter(|moment| now.saturating_sub(moment.taken) < age);
        let chosen = fit().nth(seat.rng.random_range(0..fit().count().max(1)))?.clone();
        let before = &notes.acknowledged[..chosen.acknowledged];
        Some((chosen, before[before.len().saturating_sub(SOUGHT)..].to_vec()))
    }

    async fn look_back(&self, client: &kv::Client, seat: &mut Seat) {
        let Some((moment, sought)) = self.pick(seat) else { return };
        let near = seat.rng.random_bool(0.8);
        let txn = if near { client.begin_near(moment.ts) } else { client.begin_at(moment.ts) };
        let way = [Way::OneByOne, Way::Together, Way::Scan][seat.rng.random_range(0..3)];
        let looked = async {
            let seen = look(&txn, way).await?;
            let keys: Vec<Bytes> = sought.iter().map(|(id, from)| bank::record_key(*id, *from)).collect();
            Ok::<_, kv::Error>((seen, txn.get_many(&keys).await?))
        };
        let (seen, records) = match looked.await {
            Ok(looked) => looked,
            Err(kv::Error::SnapshotTooOld { .. }) => return seat.world.count("moments too old", 1),
            Err(_) => return seat.world.count("looks without an answer", 1),
        };
        seat.world.count(if near { "looks at the past nearby" } else { "looks at the past at leaders" }, 1);
        let missing = sought.iter().zip(records).find(|(_, record)| record.is_none());
        let judged = ledger::check_snapshot(&seen, ACCOUNTS, INITIAL).and_then(|()| match missing {
            Some(((id, _), _)) => Err(format!("transfer {id} was acknowledged before and is not there")),
            None => self.agrees(&moment, seen, &seat.world),
        });
        if let Err(reason) = judged {
            seat.world.fail(format!("at {}, near {near}, {way:?}: {reason}", moment.ts));
        }
    }

    /// Whether all that have looked at a moment saw the same.
    fn agrees(&self, moment: &Moment, seen: BTreeMap<u64, u64>, world: &World) -> Result<(), String> {
        let mut notes = self.0.lock();
        let Some(known) = notes.moments.iter_mut().find(|known| known.ts == moment.ts) else { return Ok(()) };
        let first = known.seen.get_or_insert_with(|| seen.clone());
        world.count("looks that agree", 1);
        if *first == seen { Ok(()) } else { Err(format!("{seen:?} is seen now, {first:?} was before")) }
    }
}

impl Workload<kv::Client> for Past {
    fn prepare(self: Arc<Self>, mut client: kv::Client) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { client.open().await })
    }

    fn session(self: Arc<Self>, mut client: kv::Client, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                match seat.rng.random_range(0..10) {
                    0..4 => self.transfer(&mut client, &mut seat).await,
                    4 => self.take_moment(&client, &seat).await,
                    _ => self.look_back(&client, &mut seat).await,
                }
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        <kv::Client as Accounts>::border(rng)
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(self: Arc<Self>, client: kv::Client, _: World) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            let ts = client.timestamp().await.map_err(|e| e.to_string())?;
            let seen = look(&client.begin_near(ts), Way::Together).await.map_err(|e| e.to_string())?;
            Ok(ledger::check_snapshot(&seen, ACCOUNTS, INITIAL))
        })
    }
}
