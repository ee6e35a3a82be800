//! [`super::bank`] in transactions that keep nothing in memory: each step is left with the stores, some are taken back, and
//! some transactions take their time meanwhile.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use kv::{CommitOptions, Error};
use rand_chacha::ChaCha8Rng;

use super::bank::{
    ACCOUNTS, Accounts, Books, Outcome, Pause, account_key, balance, balances, counted, counter_key, failed, number,
    read_all, record, record_key,
};
use crate::{
    check::ledger::Transfer,
    cluster::nodes::{Floor, Tenant},
    runtime::{Owner, World},
};

/// One of so many transfers takes its time, longer than a lock's TTL.
const SLOW_ONE_IN: u64 = 8;
/// How long.
const SLOW: Duration = Duration::from_secs(4);

/// Nodes whose transactions spill whenever they make room.
pub struct Large;

impl Tenant for Large {
    type Client = LargeClient;

    fn client_config(&self, _: &mut dyn rand::RngCore) -> kv::ClientConfig {
        kv::ClientConfig { spill_bytes: 0, spill_rows: 0, ..kv::ClientConfig::default() }
    }

    fn move_in(&self, floor: Floor) -> BoxFuture<'static, Result<LargeClient, String>> {
        let Floor { node, world, owner, .. } = floor;
        Box::pin(async move { Ok(LargeClient { client: node.client(), world, owner }) })
    }
}

/// The client of one node.
#[derive(Clone)]
pub struct LargeClient {
    client: kv::Client,
    world: World,
    owner: Owner,
}

impl LargeClient {
    async fn holds(&self, txn: &kv::Txn, account: u64, wanted: u64) -> Result<bool, Error> {
        Ok(balance(txn.get(&account_key(account)).await?) == wanted)
    }

    async fn move_money(&self, id: u64, transfer: Transfer) -> Result<bool, Error> {
        let Transfer { from, to, amount } = transfer;
        let txn = self.client.begin().await?;
        let source = balance(txn.get(&account_key(from)).await?);
        let target = balance(txn.get(&account_key(to)).await?);
        if source < amount {
            return Ok(false);
        }
        txn.put(account_key(from), number(source + 1))?;
        txn.make_room().await?;
        let place = txn.savepoint();
        // A wrong turn: it takes everything from somebody who has no part in this.
        let other = (0..ACCOUNTS).find(|account| ![from, to].contains(account)).unwrap_or_default();
        txn.put(account_key(other), number(0))?;
        txn.put(account_key(from), number(0))?;
        txn.make_room().await?;
        txn.roll_back_to(&place).await?;
        let back = self.holds(&txn, from, source + 1).await?;
        txn.put(account_key(from), number(source - amount))?;
        txn.put(account_key(to), number(target + amount))?;
        txn.make_room().await?;
        if id.is_multiple_of(SLOW_ONE_IN) {
            self.world.sleep(self.owner, SLOW).await;
        }
        let ahead = self.holds(&txn, to, target + amount).await?;
        txn.insert(record_key(id, from), record(&transfer))?;
        drop(place);
        txn.commit(CommitOptions::default()).await?;
        // Who has lost its locks may read anything, but then it does not commit.
        if !(back && ahead) {
            self.world.fail(format!("transfer {id} has not read what it had written"));
        }
        self.world.count("spilled transactions committed", 1);
        Ok(true)
    }
}

#[async_trait]
impl Accounts for LargeClient {
    fn border(rng: &mut ChaCha8Rng) -> Option<Bytes> {
        kv::Client::border(rng)
    }

    async fn open(&mut self) -> Result<(), String> {
        self.client.open().await
    }

    async fn transfer(&mut self, id: u64, transfer: Transfer) -> Outcome<()> {
        match self.move_money(id, transfer).await {
            Ok(true) => Outcome::Done(()),
            Ok(false) => Outcome::Refused,
            Err(error) => failed(&error),
        }
    }

    async fn balances(&mut self, first: u64, pause: Pause) -> Option<BTreeMap<u64, u64>> {
        balances(&self.client.begin().await.ok()?, first, pause).await.ok()
    }

    async fn increment(&mut self, counter: u64) -> Outcome<u64> {
        let done = async {
            let txn = self.client.begin().await?;
            let value = counted(&txn, counter).await?.unwrap_or_default() + 1;
            txn.delete(counter_key(counter, value - 1))?;
            txn.make_room().await?;
            txn.put(counter_key(counter, value), number(value))?;
            txn.make_room().await?;
            txn.commit(CommitOptions::default()).await.map(|_| value)
        };
        match done.await {
            Ok(value) => Outcome::Done(value),
            Err(error) => failed(&error),
        }
    }

    async fn books(&mut self) -> Result<Books, String> {
        read_all(&self.client).await.map_err(|e| e.to_string())
    }
}
