//! [`super::register`] through the public KV service: a strong namespace, plain writes and swaps.
//!
//! To the judge of registers a swap is a write like any other. What it promises beyond is judged here: every value is written
//! once, so no two swaps can have found the same one.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use kv::{
    Error, SpaceError,
    space::{Mode, keys},
};
use node::PublicKv;
use parking_lot::Mutex;
use proto::keyspace::FIRST_USER_TABLE;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::register::{KEYS, ReadWay, Registers, WriteOutcome};
use crate::{
    cluster::nodes::{Floor, Tenant},
    runtime::World,
};

const NAME: &str = "registers";

/// Nodes whose sessions use the public KV service.
#[derive(Default)]
pub struct Doors(Swapped);

/// Registers and what swaps that were acknowledged have found there.
type Swapped = Arc<Mutex<BTreeSet<(usize, Option<Bytes>)>>>;

impl Tenant for Doors {
    type Client = Door;

    fn move_in(&self, floor: Floor) -> BoxFuture<'static, Result<Door, String>> {
        let swapped = self.0.clone();
        Box::pin(async move {
            let service = floor.node.public_kv().ok_or("the node does not run")?;
            Ok(Door { service, swapped, world: floor.world })
        })
    }
}

/// The service of one node.
#[derive(Clone)]
pub struct Door {
    service: PublicKv,
    swapped: Swapped,
    world: World,
}

impl Door {
    fn judge(&self, register: usize, found: Option<Bytes>) {
        self.world.count("registers swapped", 1);
        if !self.swapped.lock().insert((register, found.clone())) {
            self.world.fail(format!("register {register}: two swaps have found {found:?}"));
        }
    }
}

fn key(register: usize) -> Bytes {
    // The first letters are where regions are cut.
    Bytes::from(format!("{}register", (b'a' + 6 * register as u8) as char))
}

fn outcome(result: Result<(), SpaceError>) -> WriteOutcome {
    match result {
        Ok(()) => WriteOutcome::Done,
        Err(SpaceError::Kv(Error::CommitUnknown(_))) => WriteOutcome::Unknown,
        Err(_) => WriteOutcome::Refused,
    }
}

#[async_trait]
impl Registers for Door {
    async fn write(&mut self, register: usize, value: u64) -> WriteOutcome {
        let (key, value) = (key(register), Bytes::copy_from_slice(&value.to_be_bytes()));
        if value.last().is_some_and(|last| last % 2 == 0) {
            return outcome(self.service.write(NAME, &[(key, Some(value))]).await);
        }
        let there = match self.service.get(NAME, std::slice::from_ref(&key)).await {
            Ok(there) => there.into_iter().next().flatten(),
            Err(_) => return WriteOutcome::Refused,
        };
        match self.service.compare_and_swap(NAME, &key, there.as_ref(), Some(&value)).await {
            Ok(Err(_)) => WriteOutcome::Refused,
            Ok(Ok(())) => {
                self.judge(register, there);
                WriteOutcome::Done
            }
            Err(error) => outcome(Err(error)),
        }
    }

    async fn read(&mut self, register: usize, way: ReadWay) -> Option<u64> {
        let mut asked = vec![key(register)];
        if way == ReadWay::Snapshot {
            asked.push(key((register + 1) % KEYS));
        }
        let found = self.service.get(NAME, &asked).await.ok()?.swap_remove(0);
        // A value of another length is one that nobody wrote: the judge finds it.
        Some(found.map_or(0, |v| v[..].try_into().map_or(u64::MAX, u64::from_be_bytes)))
    }

    fn border(_: usize, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        // The namespace is the first that draws an id.
        let letter = rng.random_range(b'a'..=b'z');
        Some(keys::encode(FIRST_USER_TABLE, &[letter]))
    }

    async fn ready(&mut self) -> bool {
        if self.service.create(NAME, Mode::Strong).await.is_err() {
            return false;
        }
        for register in 0..KEYS {
            if self.read(register, ReadWay::Snapshot).await.is_none() {
                return false;
            }
        }
        true
    }
}
