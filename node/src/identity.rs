//! Who this data directory is: a few records of the node's own, in the `meta` column family, each synced when written.
//!
//! ```text
//! key      value
//! 'N' 'u'  UUID, 16 bytes: made once for the directory, random
//! 'N' 'b'  boot id, u64 BE: how often a process was started on it
//! 'N' 'f'  1u8 ‖ wire::FoundingRecord    the record this founder synced, or the joined cluster's
//! 'N' 's'  store id, u64 BE: written when the store may run (every founder synced the record, or PD registered it)
//! 'N' 'p'  1u8 ‖ wire::Region            region 1 as PD last told
//! 'N' 'a'  1u8 ‖ wire::GetStoresResponse where the stores are, as PD last told
//! 'N' 'r'  1u8 ‖ wire::RecoveryNotes     unsafe recoveries that were carried out here
//! 'N' 'q' …, 'N' 't'                     eventual writes that wait, see `eventual::queue`
//! ```
//!
//! A directory with a founding record but no store id was stopped in the middle of a founding, and goes on with it.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::{
    Cf, ClusterId, StoreId,
    wire::{self, FoundingRecord, RecoveryNote, RecoveryNotes},
};
use raftstore::engine::{Engine, EngineError, WriteBatch, WriteOp};

/// Length of a data directory's UUID.
pub const UUID_LEN: usize = 16;
const VERSION: u8 = 1;

#[derive(Clone, Copy)]
enum Record {
    Uuid = b'u' as isize,
    Boot = b'b' as isize,
    Founding = b'f' as isize,
    Store = b's' as isize,
    PdRegion = b'p' as isize,
    Addresses = b'a' as isize,
    Recoveries = b'r' as isize,
}

fn key(record: Record) -> Bytes {
    Bytes::copy_from_slice(&[b'N', record as u8])
}

/// The directory's identity, and the door to its records.
pub struct Identity {
    engine: Arc<dyn Engine>,
    /// Of the data directory.
    pub uuid: Bytes,
    /// Of this process: one more than the last.
    pub boot_id: u64,
    /// The founding record, once this node holds one.
    pub record: Option<FoundingRecord>,
    /// This store's id, once it may run.
    pub store: Option<StoreId>,
}

impl Identity {
    /// Reads the directory's identity; gives an empty one the UUID `fresh`. Counts the start.
    pub fn open(engine: Arc<dyn Engine>, fresh: [u8; UUID_LEN]) -> Result<Identity, EngineError> {
        let found = Self::look(engine.clone())?;
        let mut identity = found.unwrap_or_else(|| Identity {
            engine,
            uuid: Bytes::copy_from_slice(&fresh),
            boot_id: 0,
            record: None,
            store: None,
        });
        identity.boot_id += 1;
        identity.put([(Record::Uuid, identity.uuid.clone()), (Record::Boot, encode_u64(identity.boot_id))])?;
        Ok(identity)
    }

    /// Reads the directory's identity and counts no start; `None` when no process was ever started on it.
    pub fn look(engine: Arc<dyn Engine>) -> Result<Option<Identity>, EngineError> {
        let Some(uuid) = read(&*engine, Record::Uuid)? else { return Ok(None) };
        let boot_id = read(&*engine, Record::Boot)?.map_or(Ok(0), |v| decode_u64("boot id", &v))?;
        let record = read_message(&*engine, Record::Founding)?;
        let store = read(&*engine, Record::Store)?.map(|v| decode_u64("store id", &v)).transpose()?;
        Ok(Some(Identity { uuid, boot_id, record, store: store.map(StoreId), engine }))
    }

    /// The cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.record.as_ref().map(|r| ClusterId(r.cluster_id))
    }

    /// Holds the record from now on, also after a crash.
    pub fn hold(&mut self, record: FoundingRecord) -> Result<(), EngineError> {
        self.put([(Record::Founding, encode(&record))])?;
        self.record = Some(record);
        Ok(())
    }

    /// This directory is `store` of the cluster it holds the record of, and may run.
    pub fn start(&mut self, store: StoreId) -> Result<(), EngineError> {
        assert!(self.record.is_some(), "a store runs only in a cluster");
        self.put([(Record::Store, encode_u64(store.0))])?;
        self.store = Some(store);
        Ok(())
    }

    /// Region 1 as PD last told.
    pub fn pd_region(&self) -> Result<Option<wire::Region>, EngineError> {
        read_message(&*self.engine, Record::PdRegion)
    }
    /// Remembers region 1's peers: the founders' list grows stale.
    pub fn set_pd_region(&self, region: &wire::Region) -> Result<(), EngineError> {
        self.put([(Record::PdRegion, encode(region))])
    }
    /// Where the stores are, as PD last told.
    pub fn addresses(&self) -> Result<Vec<wire::Store>, EngineError> {
        let list: Option<wire::GetStoresResponse> = read_message(&*self.engine, Record::Addresses)?;
        Ok(list.unwrap_or_default().stores.into_iter().filter_map(|s| s.store).collect())
    }
    /// Remembers where the stores are.
    pub fn set_addresses(&self, stores: &[wire::Store]) -> Result<(), EngineError> {
        let status = |s: &wire::Store| wire::StoreStatus { store: Some(s.clone()), ..Default::default() };
        let list = wire::GetStoresResponse { stores: stores.iter().map(status).collect() };
        self.put([(Record::Addresses, encode(&list))])
    }

    /// What unsafe recoveries have done here.
    pub fn recoveries(&self) -> Result<RecoveryNotes, EngineError> {
        Ok(read_message(&*self.engine, Record::Recoveries)?.unwrap_or_default())
    }
    /// Notes one more, for good.
    pub fn add_recovery(&self, note: RecoveryNote) -> Result<(), EngineError> {
        let mut notes = self.recoveries()?;
        notes.notes.push(note);
        self.put([(Record::Recoveries, encode(&notes))])
    }

    fn put<const N: usize>(&self, writes: [(Record, Bytes); N]) -> Result<(), EngineError> {
        let ops = writes.into_iter().map(|(record, value)| WriteOp::Put(Cf::Meta, key(record), value)).collect();
        self.engine.write(WriteBatch { ops })?;
        self.engine.sync()
    }
}

fn encode(message: &impl Message) -> Bytes {
    let mut value = BytesMut::with_capacity(1 + message.encoded_len());
    value.put_u8(VERSION);
    message.encode(&mut value).expect("a buffer grows");
    value.freeze()
}

fn encode_u64(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

fn decode_u64(what: &str, value: &[u8]) -> Result<u64, EngineError> {
    let corrupt = |_| EngineError::Corrupt(format!("this node's {what}: {} bytes, not 8", value.len()));
    value.try_into().map(u64::from_be_bytes).map_err(corrupt)
}

fn read(engine: &dyn Engine, record: Record) -> Result<Option<Bytes>, EngineError> {
    engine.snapshot().get(Cf::Meta, &key(record))
}

fn read_message<M: Message + Default>(engine: &dyn Engine, record: Record) -> Result<Option<M>, EngineError> {
    let corrupt = |why: String| EngineError::Corrupt(format!("this node's record '{}': {why}", record as u8 as char));
    let Some(value) = read(engine, record)? else { return Ok(None) };
    match value.split_first() {
        Some((&VERSION, body)) => M::decode(body).map(Some).map_err(|e| corrupt(e.to_string())),
        Some((other, _)) => Err(corrupt(format!("version {other}, this program knows {VERSION}"))),
        None => Err(corrupt("empty".into())),
    }
}
