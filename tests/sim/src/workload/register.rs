//! Single keys, written and read in every way a client has; judged by linearizability.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use history::linearizable::{self, Action, Operation};
use parking_lot::Mutex;
use proto::keyspace;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Seat, Workload};
use crate::runtime::World;

/// Few, so that they are contended.
pub const KEYS: usize = 4;
/// How often an operation is on the last key: so seldom that its region sleeps in between.
const SELDOM: f64 = 0.004;
/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(60);

/// How a register is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadWay {
    /// The newest value.
    Latest,
    /// In a snapshot taken now.
    Snapshot,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Acknowledged.
    Done,
    /// Certainly not written, now or later.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Single keys, numbered from 0 to below [`KEYS`].
#[async_trait]
pub trait Registers: Clone + Send + 'static {
    /// Writes a value.
    async fn write(&mut self, register: usize, value: u64) -> WriteOutcome;
    /// Reads a value, 0 when there is none; `None`: no answer.
    async fn read(&mut self, register: usize, way: ReadWay) -> Option<u64>;
    /// A key around the place of a register where a region may be cut; `None`: leave them whole.
    fn border(_: usize, _: &mut ChaCha8Rng) -> Option<Bytes> {
        None
    }
    /// Makes the registers, if they have to be made; whether all of them answer.
    async fn ready(&mut self) -> bool;
}

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_value: u64,
    histories: [Vec<Operation>; KEYS],
    /// Values whose writes certainly did not happen.
    refused: BTreeSet<u64>,
}

/// The workload.
#[derive(Default)]
pub struct Register(Mutex<Notes>);

impl Register {
    async fn write(&self, client: &mut impl Registers, world: &World, register: usize) {
        let (value, at) = {
            let mut notes = self.0.lock();
            notes.next_value += 1;
            let (value, history) = (notes.next_value, &mut notes.histories[register]);
            // Until it is known better: the session may die at any point from here on.
            history.push(Operation { called: world.now(), returned: None, action: Action::Write(value) });
            (value, history.len() - 1)
        };
        match client.write(register, value).await {
            WriteOutcome::Done => {
                world.count("registers written", 1);
                self.0.lock().histories[register][at].returned = Some(world.now());
            }
            WriteOutcome::Unknown => world.count("writes of unknown outcome", 1),
            WriteOutcome::Refused => {
                world.count("writes refused", 1);
                self.0.lock().refused.insert(value);
            }
        }
    }

    async fn read(&self, client: &mut impl Registers, world: &World, register: usize, way: ReadWay) -> bool {
        let called = world.now();
        // A read without an answer says nothing.
        let Some(value) = client.read(register, way).await else { return false };
        world.count("registers read", 1);
        let operation = Operation { called, returned: Some(world.now()), action: Action::Read(value) };
        self.0.lock().histories[register].push(operation);
        true
    }

    fn verdict(&self, world: &World) -> Result<(), String> {
        let notes = self.0.lock();
        for (register, history) in notes.histories.iter().enumerate() {
            // A refused write has no place in any order; a read of its value then has no explanation.
            let refused = |op: &&Operation| matches!(op.action, Action::Write(v) if notes.refused.contains(&v));
            let happened: Vec<_> = history.iter().filter(|op| !refused(op)).copied().collect();
            world.count("operations judged", happened.len() as u64);
            linearizable::check(&happened).map_err(|reason| {
                happened.iter().for_each(|op| tracing::trace!(register, ?op, "an operation of a bad history"));
                format!("register {register}: {reason}")
            })?;
        }
        Ok(())
    }
}

impl<C: Registers> Workload<C> for Register {
    fn prepare(self: Arc<Self>, mut client: C) -> BoxFuture<'static, Result<(), String>> {
        // Registers start unwritten; this only waits until all of them answer.
        Box::pin(async move { client.ready().await.then_some(()).ok_or_else(|| "registers do not answer".to_string()) })
    }

    fn session(self: Arc<Self>, mut client: C, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                let register = match seat.rng.random_bool(SELDOM) {
                    true => KEYS - 1,
                    false => seat.rng.random_range(0..KEYS - 1),
                };
                match seat.rng.random_range(0..5) {
                    0 | 1 => self.write(&mut client, &seat.world, register).await,
                    2 | 3 => drop(self.read(&mut client, &seat.world, register, ReadWay::Latest).await),
                    _ => drop(self.read(&mut client, &seat.world, register, ReadWay::Snapshot).await),
                }
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        let register = rng.random_range(0..KEYS);
        C::border(register, rng)
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(self: Arc<Self>, mut client: C, world: World) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            // A last look: what was acknowledged must still be there.
            for register in 0..KEYS {
                if !self.read(&mut client, &world, register, ReadWay::Latest).await {
                    return Err(format!("register {register} does not answer"));
                }
            }
            Ok(self.verdict(&world))
        })
    }
}

#[async_trait]
impl Registers for kv::Client {
    async fn write(&mut self, register: usize, value: u64) -> WriteOutcome {
        let done = async {
            let txn = self.begin().await?;
            txn.put(register_key(register), Bytes::copy_from_slice(&value.to_be_bytes()))?;
            txn.commit(kv::CommitOptions::default()).await
        };
        match done.await {
            Ok(_) => WriteOutcome::Done,
            Err(kv::Error::CommitUnknown(_)) => WriteOutcome::Unknown,
            Err(_) => WriteOutcome::Refused,
        }
    }

    async fn read(&mut self, register: usize, way: ReadWay) -> Option<u64> {
        let key = register_key(register);
        let value = match way {
            ReadWay::Latest => self.get_latest(&key).await,
            ReadWay::Snapshot => self.begin().await.ok()?.get(&key).await,
        };
        value.ok().map(|value| value.map_or(0, |v| decode(&v)))
    }

    fn border(register: usize, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        let key = register_key(register);
        let mut border = key[..keyspace::PREFIX_LEN].to_vec();
        // One letter: a key is never a prefix of a border.
        border.push(rng.random_range(b'a'..=b'z'));
        Some(border.into())
    }

    async fn ready(&mut self) -> bool {
        for register in 0..KEYS {
            if self.read(register, ReadWay::Snapshot).await.is_none() {
                return false;
            }
        }
        true
    }
}

fn decode(value: &[u8]) -> u64 {
    // A value of another length is one that nobody wrote: the judge finds it.
    value.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

/// Register `n` lies in user table 100 + n: with the usual borders, in regions of their own.
fn register_key(n: usize) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE + n as u32, 1).to_vec();
    key.extend(b"register");
    key.into()
}
