//! The half of a scan that runs where the rows are: behind `kv`'s [`StoreScan`] door, wired by `server`.
//!
//! A request carries a [`ScanSpec`]; each page of rows becomes one Arrow batch of the wanted columns. On the local
//! short cut the batch is handed over as it is; over the wire it goes as an Arrow IPC stream.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::RecordBatch,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use bytes::Bytes;
use kv::{ScanChunk, ScanSink, StoreScan};
use lru::LruCache;
use parking_lot::Mutex;
use prost::Message;

use super::rows::{RowBuilder, RowShape};
use crate::{
    catalog::{ColumnDescriptor, TableDescriptor},
    types::{ColumnType, PgType},
};

/// The format of [`ScanSpec`]; a store refuses a newer one.
const SPEC_VERSION: u32 = 1;
/// Specs a store keeps decoded: one for each table and column set that is scanned at about the same time.
const CACHED_SPECS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// What a store has to know about a table to decode its rows.
#[derive(Clone, PartialEq, Message)]
pub struct ScanSpec {
    /// Of this message.
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The table's id in keys.
    #[prost(uint32, tag = "2")]
    storage_id: u32,
    /// All columns.
    #[prost(message, repeated, tag = "3")]
    columns: Vec<SpecColumn>,
    /// Positions of the key's columns.
    #[prost(uint32, repeated, tag = "4")]
    key: Vec<u32>,
    /// Positions of the wanted columns, in the order of the output.
    #[prost(uint32, repeated, tag = "5")]
    wanted: Vec<u32>,
}

/// A column of a [`ScanSpec`].
#[derive(Clone, PartialEq, Message)]
pub struct SpecColumn {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(uint32, tag = "2")]
    type_oid: u32,
    #[prost(sint32, tag = "3")]
    type_mod: i32,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(bool, tag = "5")]
    nullable: bool,
}

impl ScanSpec {
    /// For a scan of `columns` (positions) of a table, as the wire has it.
    pub fn encode(table: &TableDescriptor, columns: &[usize]) -> Bytes {
        let column = |column: &ColumnDescriptor| SpecColumn {
            id: column.id,
            type_oid: column.column_type.pg_type.oid(),
            type_mod: column.column_type.type_mod,
            name: column.name.clone(),
            nullable: column.nullable,
        };
        let spec = ScanSpec {
            version: SPEC_VERSION,
            storage_id: table.storage_id,
            columns: table.columns.iter().map(column).collect(),
            key: table.key.iter().map(|at| *at as u32).collect(),
            wanted: columns.iter().map(|at| *at as u32).collect(),
        };
        spec.encode_to_vec().into()
    }

    /// The shape of the rows it asks for; `Err` says what is wrong with it.
    fn shape(self) -> Result<RowShape, String> {
        if self.version != SPEC_VERSION {
            return Err(format!("scan spec version {} is not known here", self.version));
        }
        let column = |column: SpecColumn| {
            let pg_type =
                PgType::from_oid(column.type_oid).ok_or(format!("type {} is not known here", column.type_oid))?;
            Ok(ColumnDescriptor {
                nullable: column.nullable,
                ..ColumnDescriptor::new(column.id, column.name, ColumnType { pg_type, type_mod: column.type_mod })
            })
        };
        let columns: Vec<ColumnDescriptor> = self.columns.into_iter().map(column).collect::<Result<_, String>>()?;
        let position = |at: u32| {
            let at = at as usize;
            if at < columns.len() { Ok(at) } else { Err(format!("a scan spec names column {at} of {}", columns.len())) }
        };
        let key = self.key.into_iter().map(position).collect::<Result<Vec<_>, _>>()?;
        let wanted = self.wanted.into_iter().map(position).collect::<Result<Vec<_>, _>>()?;
        Ok(RowShape::new(&TableDescriptor::new(self.storage_id, "", columns, key), wanted))
    }
}

/// Decodes rows of tables into Arrow batches.
pub struct RowScan {
    shapes: Mutex<LruCache<Bytes, Arc<RowShape>>>,
}

impl Default for RowScan {
    fn default() -> Self {
        RowScan { shapes: Mutex::new(LruCache::new(CACHED_SPECS)) }
    }
}

impl StoreScan for RowScan {
    fn start(&self, spec: &Bytes) -> Result<Box<dyn ScanSink>, String> {
        if let Some(shape) = self.shapes.lock().get(spec) {
            return Ok(Box::new(Sink { builder: shape.builder() }));
        }
        let decoded = ScanSpec::decode(spec.clone()).map_err(|error| format!("a bad scan spec: {error}"))?;
        let shape = Arc::new(decoded.shape()?);
        self.shapes.lock().put(spec.clone(), Arc::clone(&shape));
        Ok(Box::new(Sink { builder: shape.builder() }))
    }

    fn encode(&self, chunk: &ScanChunk) -> Result<Bytes, String> {
        let batch = chunk.downcast_ref::<RecordBatch>().ok_or("a scan's chunk is no Arrow batch")?;
        let mut out = Vec::with_capacity(batch.get_array_memory_size());
        let mut writer = StreamWriter::try_new(&mut out, &batch.schema()).map_err(|error| error.to_string())?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(|error| error.to_string())?;
        drop(writer);
        Ok(out.into())
    }

    fn decode(&self, bytes: Bytes) -> Result<ScanChunk, String> {
        let mut reader = StreamReader::try_new(bytes.as_ref(), None).map_err(|error| error.to_string())?;
        let batch = reader.next().ok_or("a scan's chunk holds no batch")?.map_err(|error| error.to_string())?;
        Ok(Arc::new(batch))
    }
}

struct Sink {
    builder: RowBuilder,
}

impl ScanSink for Sink {
    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        self.builder.push(key, &Bytes::copy_from_slice(value)).map_err(|error| error.to_string())
    }
    fn finish(self: Box<Self>) -> Result<ScanChunk, String> {
        Ok(Arc::new(self.builder.finish().map_err(|error| error.to_string())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::TableDescriptor, codec::TableCodec, types::Datum};

    fn table() -> TableDescriptor {
        let column = |id: u32, name: &str, pg_type: PgType| ColumnDescriptor {
            nullable: id > 1,
            ..ColumnDescriptor::new(id, name, pg_type.plain())
        };
        TableDescriptor::new(100, "t", vec![column(1, "k", PgType::Int4), column(2, "v", PgType::Text)], vec![0])
    }

    #[test]
    fn rows_become_batches_here_and_over_the_wire() {
        let (table, scan) = (table(), RowScan::default());
        let codec = TableCodec::new(&table);
        let mut sink = scan.start(&ScanSpec::encode(&table, &[1])).unwrap();
        for (key, text) in [(1, Datum::text("one")), (2, Datum::Null)] {
            let row = [Datum::Int4(key), text];
            sink.push(&codec.key(&row).unwrap(), &codec.value(&row).unwrap()).unwrap();
        }
        let chunk = sink.finish().unwrap();
        let sent = scan.decode(scan.encode(&chunk).unwrap()).unwrap();
        let batch = chunk.downcast_ref::<RecordBatch>().unwrap();
        assert_eq!(sent.downcast_ref::<RecordBatch>().unwrap(), batch);
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 1));
        assert!(batch.column(0).is_null(1));
    }

    #[test]
    fn bad_specs_are_refused() {
        let scan = RowScan::default();
        assert!(scan.start(&Bytes::from_static(b"\xff\xff")).is_err());
        let spec = ScanSpec { version: SPEC_VERSION, wanted: vec![7], ..Default::default() };
        assert!(scan.start(&spec.encode_to_vec().into()).is_err());
        assert!(scan.decode(Bytes::from_static(b"nonsense")).is_err());
    }
}
