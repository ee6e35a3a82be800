//! Namespaces of the public KV service, on top of transactions: names, and the operations of `strong` ones.
//!
//! ```text
//!   put, delete, several     a transaction of its own, again on a conflict: all or nothing
//!   compare-and-swap         read, compare, write in one transaction: a write in between is a conflict, and it compares anew
//!   get (one)                the newest committed value, under the leader's lease
//!   get (several), scan      a snapshot at a timestamp from PD; a scan's next pages are of the same snapshot
//! ```
//!
//! So every operation takes effect at one instant between its call and its answer. A write whose answer was lost and whose
//! outcome nobody can tell is reported as that ([`Error::CommitUnknown`]), and not made again: it might be made twice.
//!
//! Of `eventual` namespaces only what needs regions is here ([`Spaces::merge`], [`Spaces::stored`]); [`lww`] is their rule, and
//! the queue of accepted writes belongs to the node.
//!
//! [`keys`] draws the records. Namespaces are never dropped, and never SQL's: they have keyspaces of their own.

pub mod keys;
pub mod lww;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use proto::{Timestamp, keyspace::NAMESPACES_KEYSPACE};

use crate::{Client, CommitOptions, Error, Floor, ScanOptions, Txn, planted::Planted};

pub use keys::{Mode, Namespace};
use keys::{Token, after};
use lww::Stamped;

/// Longest key, bytes: with every byte escaped it is still well below what locks and region borders hold.
pub const KEY_BYTES_MAX: usize = 2048;
/// Longest value, bytes: a write of several must fit one proposal.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys of one request: they are one transaction, or one read of a snapshot.
pub const BATCH_KEYS_MAX: usize = 1000;
/// Bytes of keys and values of one request.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Rows of one page at most; also what a request without a limit gets.
pub const PAGE_ROWS_MAX: usize = 1000;
/// A page ends with the row that passes this many bytes.
pub const PAGE_BYTES_ABOUT: usize = 4 << 20;

/// Why an operation on a namespace did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// The request makes no sense, whenever it is made.
    #[error("{0}")]
    Bad(String),
    /// There is no namespace of this name.
    #[error("there is no namespace {0:?}")]
    NoNamespace(String),
    /// It exists in another mode.
    #[error("namespace {0:?} exists already, in the other mode")]
    OtherMode(String),
    /// The namespace's mode has no such operation.
    #[error("namespace {0:?} is eventual: {1}")]
    NotStrong(String, &'static str),
    /// From below.
    #[error(transparent)]
    Kv(#[from] Error),
}

type Result<T> = std::result::Result<T, SpaceError>;

/// One change of a write; `None`: the key is deleted.
pub type Change = (Bytes, Option<Bytes>);

/// What of a namespace to scan.
#[derive(Clone, Debug, Default)]
pub struct ScanQuery {
    /// First key; empty: from the first on.
    pub start: Bytes,
    /// The key before which it ends; empty: to the last.
    pub end: Bytes,
    /// Rows of the page at most, up to [`PAGE_ROWS_MAX`]; 0: that many.
    pub limit: usize,
    /// From the end to the start.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// From the page before; empty: the first page.
    pub token: Bytes,
}

/// A page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpacePage {
    /// Keys and values (of eventual namespaces: records), in the scan's order.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Where it goes on; empty: it has ended.
    pub token: Bytes,
}

/// The namespaces of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Spaces {
    client: Client,
    /// Namespaces never change: once known they are looked up without a read.
    known: Arc<RwLock<BTreeMap<String, Namespace>>>,
}

fn corrupt(what: &str) -> SpaceError {
    SpaceError::Kv(Error::Corrupt(format!("{what} of the public KV service does not decode")))
}

/// Whether a key may be stored.
pub fn check_key(key: &[u8]) -> Result<()> {
    match (1..=KEY_BYTES_MAX).contains(&key.len()) {
        true => Ok(()),
        false => Err(SpaceError::Bad(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len()))),
    }
}

/// Whether changes may be made in one request.
pub fn check_changes(changes: &[Change]) -> Result<()> {
    if !(1..=BATCH_KEYS_MAX).contains(&changes.len()) {
        let count = changes.len();
        return Err(SpaceError::Bad(format!("a write changes 1 to {BATCH_KEYS_MAX} keys, this one {count}")));
    }
    let mut bytes = 0;
    for (key, value) in changes {
        check_key(key)?;
        let length = value.as_ref().map_or(0, Bytes::len);
        if length > VALUE_BYTES_MAX {
            let most = VALUE_BYTES_MAX;
            return Err(SpaceError::Bad(format!("a value has up to {most} bytes, this one has {length}")));
        }
        bytes += key.len() + length;
    }
    if bytes > BATCH_BYTES_MAX {
        let most = BATCH_BYTES_MAX;
        return Err(SpaceError::Bad(format!("a write has up to {most} bytes of keys and values, this one {bytes}")));
    }
    let mut named: Vec<_> = changes.iter().map(|(key, _)| key).collect();
    named.sort_unstable();
    match named.windows(2).any(|w| w[0] == w[1]) {
        true => Err(SpaceError::Bad("a write names a key twice".into())),
        false => Ok(()),
    }
}

/// Whether keys may be asked for in one request.
pub fn check_keys(keys: &[Bytes]) -> Result<()> {
    if !(1..=BATCH_KEYS_MAX).contains(&keys.len()) {
        return Err(SpaceError::Bad(format!("a get names 1 to {BATCH_KEYS_MAX} keys, this one {}", keys.len())));
    }
    keys.iter().try_for_each(|key| check_key(key))
}

impl Spaces {
    /// Over a client.
    pub fn new(client: Client) -> Spaces {
        Spaces { client, known: Arc::default() }
    }

    /// Makes a namespace; one of that name and mode is fine.
    pub async fn create(&self, name: &str, mode: Mode) -> Result<Namespace> {
        keys::check_name(name).map_err(SpaceError::Bad)?;
        let mut retry = self.client.retry();
        loop {
            match self.create_once(name, mode).await {
                Err(SpaceError::Kv(e)) if e.is_retryable() => retry.pause(e).await?,
                other => return other,
            }
        }
    }

    async fn create_once(&self, name: &str, mode: Mode) -> Result<Namespace> {
        let txn = self.client.begin().await?;
        let key = keys::registry_key(name);
        if let Some(record) = txn.get(&key).await? {
            let (found, keyspace) = keys::decode_namespace(&record).ok_or_else(|| corrupt("a namespace"))?;
            let namespace = self.learn(Namespace { name: name.into(), mode: found, keyspace });
            return if found == mode { Ok(namespace) } else { Err(SpaceError::OtherMode(name.into())) };
        }
        let id = self.client.pd().alloc_ids(1).await.map_err(Error::from)?;
        let keyspace = u32::try_from(id).ok().filter(|id| *id > NAMESPACES_KEYSPACE);
        let keyspace = keyspace.ok_or_else(|| Error::TooLarge("the ids of namespaces are used up".into()))?;
        txn.insert(key, keys::encode_namespace(mode, keyspace))?;
        // Somebody else's namespace of this name: look at it.
        let again = |e| if matches!(e, Error::AlreadyExists { .. }) { Error::Aborted } else { e };
        txn.commit(OWN_START).await.map_err(again)?;
        Ok(self.learn(Namespace { name: name.into(), mode, keyspace }))
    }

    fn learn(&self, namespace: Namespace) -> Namespace {
        self.known.write().insert(namespace.name.clone(), namespace.clone());
        namespace
    }

    /// The namespace of a name.
    pub async fn find(&self, name: &str) -> Result<Namespace> {
        if let Some(known) = self.known.read().get(name) {
            return Ok(known.clone());
        }
        keys::check_name(name).map_err(SpaceError::Bad)?;
        let record = self.client.get_latest(&keys::registry_key(name)).await?;
        let record = record.ok_or_else(|| SpaceError::NoNamespace(name.into()))?;
        let (mode, keyspace) = keys::decode_namespace(&record).ok_or_else(|| corrupt("a namespace"))?;
        Ok(self.learn(Namespace { name: name.into(), mode, keyspace }))
    }

    /// All namespaces, by name.
    pub async fn list(&self) -> Result<Vec<Namespace>> {
        let txn = self.client.begin().await?;
        let mut scan = txn.scan(ScanOptions { range: keys::registry(), ..ScanOptions::default() });
        let mut found = Vec::new();
        while let Some(page) = scan.next_page().await? {
            for (key, record) in page.rows {
                let name = keys::decode(&key).and_then(|name| String::from_utf8(name.to_vec()).ok());
                let namespace = name.zip(keys::decode_namespace(&record));
                let (name, (mode, keyspace)) = namespace.ok_or_else(|| corrupt("a namespace"))?;
                found.push(Namespace { name, mode, keyspace });
            }
        }
        Ok(found)
    }

    /// The values of keys, in the order asked: of one instant.
    pub async fn get(&self, namespace: &Namespace, asked: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        check_keys(asked)?;
        let records = self.stored(namespace, asked).await?;
        let value =
            |record: Option<Bytes>| record.map(|r| keys::decode_value(r).ok_or_else(|| corrupt("a value"))).transpose();
        records.into_iter().map(value).collect()
    }

    /// What is stored under keys, in the order asked: of one instant.
    pub async fn stored(&self, namespace: &Namespace, asked: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let encoded: Vec<_> = asked.iter().map(|key| keys::encode(namespace.keyspace, key)).collect();
        match &encoded[..] {
            [one] => Ok(vec![self.client.get_latest(one).await?]),
            many => Ok(self.client.begin().await?.get_many(many).await?),
        }
    }

    /// Makes changes, all or none.
    pub async fn write(&self, namespace: &Namespace, changes: &[Change]) -> Result<()> {
        check_changes(changes)?;
        let mut retry = self.client.retry();
        loop {
            match self.write_once(namespace, changes).await {
                Err(e) if e.is_retryable() => retry.pause(e).await?,
                other => return Ok(other?),
            }
        }
    }

    async fn write_once(&self, namespace: &Namespace, changes: &[Change]) -> std::result::Result<(), Error> {
        let txn = self.client.begin().await?;
        for (key, value) in changes {
            set(&txn, keys::encode(namespace.keyspace, key), value.as_deref())?;
        }
        txn.commit(OWN_START).await.map(drop)
    }

    /// Sets a key (`None`: deletes it) if its value is `expected` (`None`: it has none). Otherwise its value comes back.
    pub async fn compare_and_swap(
        &self,
        namespace: &Namespace,
        key: &Bytes,
        expected: Option<&Bytes>,
        value: Option<&Bytes>,
    ) -> Result<std::result::Result<(), Option<Bytes>>> {
        check_changes(&[(key.clone(), value.cloned())])?;
        let key = keys::encode(namespace.keyspace, key);
        let mut retry = self.client.retry();
        loop {
            match self.swap_once(&key, expected, value).await {
                Err(SpaceError::Kv(e)) if e.is_retryable() => retry.pause(e).await?,
                other => return other,
            }
        }
    }

    async fn swap_once(
        &self,
        key: &Bytes,
        expected: Option<&Bytes>,
        value: Option<&Bytes>,
    ) -> Result<std::result::Result<(), Option<Bytes>>> {
        let txn = self.client.begin().await?;
        let there = txn.get(key).await?;
        let there = there.map(|r| keys::decode_value(r).ok_or_else(|| corrupt("a value"))).transpose()?;
        if there.as_ref() != expected {
            return Ok(Err(there));
        }
        let txn = if self.client.has(Planted::SwapUnchecked) { self.client.begin().await? } else { txn };
        set(&txn, key.clone(), value.map(|v| &v[..]))?;
        txn.commit(OWN_START).await?;
        Ok(Ok(()))
    }

    /// A page of a scan; its rows are of the scan's snapshot.
    pub async fn scan(&self, namespace: &Namespace, query: &ScanQuery) -> Result<SpacePage> {
        let mut page = self.scan_stored(namespace, query).await?;
        if !query.keys_only {
            for (_, record) in &mut page.rows {
                *record = keys::decode_value(std::mem::take(record)).ok_or_else(|| corrupt("a value"))?;
            }
        }
        Ok(page)
    }

    /// The same with what is stored instead of the values.
    pub async fn scan_stored(&self, namespace: &Namespace, query: &ScanQuery) -> Result<SpacePage> {
        let (mut range, read_ts) = self.scan_range(namespace, query).await?;
        if range.is_empty() {
            return Ok(SpacePage::default());
        }
        let limit = if query.limit == 0 { PAGE_ROWS_MAX } else { query.limit.min(PAGE_ROWS_MAX) };
        let options = ScanOptions {
            range: range.clone(),
            limit: limit as u64,
            reverse: query.reverse,
            keys_only: query.keys_only,
            ..ScanOptions::default()
        };
        let mut scan = self.client.begin_at(read_ts).scan(options);
        let (mut page, mut bytes) = (SpacePage::default(), 0);
        while let Some(rows) = scan.next_page().await? {
            for (key, value) in rows.rows {
                bytes += key.len() + value.len();
                match query.reverse {
                    true => range.end = key.clone(),
                    false => range.start = after(&key),
                }
                page.rows.push((keys::decode(&key).ok_or_else(|| corrupt("a key"))?, value));
            }
            if page.rows.len() >= limit || bytes >= PAGE_BYTES_ABOUT {
                let border = if query.reverse { range.end } else { range.start };
                let token = Token { keyspace: namespace.keyspace, read_ts, reverse: query.reverse, border };
                page.token = token.encode();
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// What is left to scan, and at which timestamp.
    async fn scan_range(&self, namespace: &Namespace, query: &ScanQuery) -> Result<(proto::KeyRange, Timestamp)> {
        for border in [&query.start, &query.end] {
            if border.len() > KEY_BYTES_MAX {
                return Err(SpaceError::Bad(format!("a border of a scan has up to {KEY_BYTES_MAX} bytes")));
            }
        }
        let mut range = keys::range(namespace.keyspace, &query.start, &query.end);
        if query.token.is_empty() {
            return Ok((range, self.client.timestamp().await?));
        }
        let token = Token::decode(query.token.clone());
        let ours = |t: &Token| {
            let inside = t.border >= range.start && t.border <= range.end;
            t.keyspace == namespace.keyspace && t.reverse == query.reverse && inside
        };
        let Some(token) = token.filter(ours) else {
            return Err(SpaceError::Bad("the token is not from a page of this scan".into()));
        };
        match token.reverse {
            true => range.end = token.border,
            false => range.start = token.border,
        }
        Ok((range, token.read_ts))
    }

    /// Lets stamped writes into an eventual namespace; those that come too late have no effect.
    pub async fn merge(&self, keyspace: u32, writes: &[(Bytes, Stamped)]) -> Result<()> {
        let mut retry = self.client.retry();
        loop {
            match self.merge_once(keyspace, writes).await {
                Err(SpaceError::Kv(e)) if e.is_retryable() => retry.pause(e).await?,
                other => return other,
            }
        }
    }

    async fn merge_once(&self, keyspace: u32, writes: &[(Bytes, Stamped)]) -> Result<()> {
        let encoded: Vec<_> = writes.iter().map(|(key, _)| keys::encode(keyspace, key)).collect();
        let txn = self.client.begin().await?;
        let there = txn.get_many(&encoded).await?;
        for ((key, there), (_, write)) in encoded.into_iter().zip(there).zip(writes) {
            let there = there.map(|r| Stamped::decode(r).ok_or_else(|| corrupt("an eventual value"))).transpose()?;
            if write.beats(there.as_ref()) {
                txn.put(key, write.encode())?;
            }
        }
        txn.commit(OWN_START).await?;
        Ok(())
    }
}

/// A transaction here is one operation: its own start is after everything that was acknowledged before it.
const OWN_START: CommitOptions = CommitOptions { floor: Floor::StartTs, max_commit_ts: None };

fn set(txn: &Txn, key: Bytes, value: Option<&[u8]>) -> std::result::Result<(), Error> {
    match value {
        Some(value) => txn.put(key, keys::encode_value(value)),
        None => txn.delete(key),
    }
}

#[cfg(test)]
mod tests;
