//! Single keys, written and read in every way a client has; judged by linearizability.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::keyspace;
use rand::Rng;

use super::{Seat, Workload};
use crate::{
    check::linearizable::{self, Action, Operation},
    runtime::World,
};

/// Few, so that they are contended.
const KEYS: usize = 4;
/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(120);

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_value: u64,
    histories: [Vec<Operation>; KEYS],
}

/// The workload.
#[derive(Default)]
pub struct Register(Mutex<Notes>);

impl Register {
    /// Notes a call; its outcome is unknown until [`Register::returned`] or [`Register::void`].
    fn called(&self, world: &World, key: usize, action: Action) -> usize {
        let mut notes = self.0.lock();
        notes.histories[key].push(Operation { called: world.now(), returned: None, action });
        notes.histories[key].len() - 1
    }
    fn returned(&self, world: &World, key: usize, at: usize) {
        self.0.lock().histories[key][at].returned = Some(world.now());
    }
    fn new_value(&self) -> u64 {
        let mut notes = self.0.lock();
        notes.next_value += 1;
        notes.next_value
    }

    async fn write(&self, client: &kv::Client, world: &World, key: usize) {
        let value = self.new_value();
        let at = self.called(world, key, Action::Write(value));
        let done = async {
            let txn = client.begin().await?;
            txn.put(register_key(key), Bytes::copy_from_slice(&value.to_be_bytes()))?;
            txn.commit(kv::CommitOptions::default()).await
        };
        match done.await {
            Ok(_) => {
                world.count("registers written", 1);
                self.returned(world, key, at);
            }
            Err(kv::Error::CommitUnknown(_)) => world.count("commits of unknown outcome", 1),
            // Certainly not written. It stays in the history as one that may never take effect, with a value that
            // no read may see: see `judge`.
            Err(_) => self.refuse(key, at),
        }
    }

    /// A write that certainly did not happen: any read of its value is wrong.
    fn refuse(&self, key: usize, at: usize) {
        self.0.lock().histories[key][at].action = Action::Write(u64::MAX);
    }

    async fn read(&self, client: &kv::Client, world: &World, key: usize, with_timestamp: bool) {
        let called = world.now();
        let value = if with_timestamp {
            match client.begin().await {
                Ok(txn) => txn.get(&register_key(key)).await,
                Err(e) => Err(e),
            }
        } else {
            client.get_latest(&register_key(key)).await
        };
        // A read without an answer says nothing.
        let Ok(value) = value else { return };
        world.count(if with_timestamp { "snapshot reads" } else { "lease reads" }, 1);
        let action = Action::Read(value.map_or(0, |v| decode(&v)));
        let operation = Operation { called, returned: Some(world.now()), action };
        self.0.lock().histories[key].push(operation);
    }
}

impl Workload for Register {
    fn prepare(self: Arc<Self>, client: kv::Client) -> BoxFuture<'static, Result<(), kv::Error>> {
        // Registers start unwritten; this only waits until the cluster answers.
        Box::pin(async move { client.timestamp().await.map(|_| ()) })
    }

    fn session(self: Arc<Self>, client: kv::Client, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                let key = seat.rng.random_range(0..KEYS);
                match seat.rng.random_range(0..5) {
                    0 | 1 => self.write(&client, &seat.world, key).await,
                    2 | 3 => self.read(&client, &seat.world, key, false).await,
                    _ => self.read(&client, &seat.world, key, true).await,
                }
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(
        self: Arc<Self>,
        client: kv::Client,
        world: World,
    ) -> BoxFuture<'static, Result<Result<(), String>, kv::Error>> {
        Box::pin(async move {
            // A last look: what was acknowledged must still be there.
            for key in 0..KEYS {
                let called = world.now();
                let value = client.get_latest(&register_key(key)).await?;
                let action = Action::Read(value.map_or(0, |v| decode(&v)));
                let operation = Operation { called, returned: Some(world.now()), action };
                self.0.lock().histories[key].push(operation);
            }
            let notes = self.0.lock();
            for (key, history) in notes.histories.iter().enumerate() {
                let took_place: Vec<_> =
                    history.iter().filter(|op| op.action != Action::Write(u64::MAX)).copied().collect();
                world.count("operations judged", took_place.len() as u64);
                if let Err(reason) = linearizable::check(&took_place) {
                    return Ok(Err(format!("register {key}: {reason}")));
                }
            }
            Ok(Ok(()))
        })
    }
}

fn decode(value: &[u8]) -> u64 {
    // A value of another length is one that nobody wrote: the judge finds it.
    value.try_into().map_or(u64::MAX - 1, u64::from_be_bytes)
}

/// Register `n` lies in user table 100 + n: with the usual borders, in regions of their own.
fn register_key(n: usize) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE + n as u32, 1).to_vec();
    key.extend(b"register");
    key.into()
}
