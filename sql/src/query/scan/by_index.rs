//! Rows by a secondary index: its entries first, then the rows they lead to.

use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::common::Result;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kv::{ScanOptions, Txn};
use proto::KeyRange;

use super::{bounds::Spans, rows::RowShape};
use crate::{
    codec::IndexCodec,
    error::{SqlError, SqlResult, SqlState},
    query::failure::external,
};

/// Rows fetched in one request; a batch comes of each.
pub const ROWS_AT_ONCE: usize = 512;

/// The rows of the entries in `spans`, in the index's order; with `limit` that many entries are enough.
pub fn batches(
    txn: Txn,
    index: Arc<IndexCodec>,
    spans: Spans,
    limit: Option<usize>,
    shape: Arc<RowShape>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let keys = match spans {
        Spans::Points(points) => points_of(txn.clone(), index, points).boxed(),
        Spans::Ranges(ranges) => {
            let (txn, index) = (txn.clone(), Arc::clone(&index));
            stream::iter(ranges).flat_map(move |range| range_of(txn.clone(), Arc::clone(&index), range, limit)).boxed()
        }
    };
    keys.try_filter(|keys| std::future::ready(!keys.is_empty()))
        .and_then(move |keys| {
            let (txn, shape) = (txn.clone(), Arc::clone(&shape));
            async move { fetch(&txn, &keys, &shape).await }
        })
        .map_err(external)
}

async fn fetch(txn: &Txn, keys: &[Bytes], shape: &Arc<RowShape>) -> SqlResult<RecordBatch> {
    let mut builder = shape.builder();
    for (key, value) in keys.iter().zip(txn.get_many(keys).await?) {
        match value {
            Some(value) => builder.push(key, &value)?,
            None => may_be_gone(txn)?,
        }
    }
    builder.finish()
}

/// An entry has no row. Both were read at one snapshot: unless the transaction itself has removed the row meanwhile, which a cursor sees,
/// that is XX001.
pub fn may_be_gone(txn: &Txn) -> SqlResult<()> {
    if txn.write_count() > 0 {
        return Ok(());
    }
    Err(SqlError::new(SqlState::DATA_CORRUPTED, "an index has an entry without a row"))
}

/// Keys of rows by entries that are points of a unique index.
fn points_of(txn: Txn, index: Arc<IndexCodec>, points: Vec<Bytes>) -> impl Stream<Item = SqlResult<Vec<Bytes>>> + Send {
    let chunks: Vec<Vec<Bytes>> = points.chunks(ROWS_AT_ONCE).map(<[Bytes]>::to_vec).collect();
    stream::iter(chunks).then(move |points| {
        let (txn, index) = (txn.clone(), Arc::clone(&index));
        async move {
            let found = txn.get_many(&points).await?;
            let there = points.iter().zip(found).filter_map(|(key, value)| Some((key, value?)));
            there.map(|(key, value)| index.row_key(key, &value)).collect()
        }
    })
}

/// Keys of rows by the entries of a range.
fn range_of(
    txn: Txn,
    index: Arc<IndexCodec>,
    range: KeyRange,
    limit: Option<usize>,
) -> impl Stream<Item = SqlResult<Vec<Bytes>>> + Send {
    let scan = txn.scan(ScanOptions { range, limit: limit.unwrap_or(0) as u64, ..Default::default() });
    let pages = stream::try_unfold(scan, |mut scan| async move {
        let page = scan.next_page().await.map_err(SqlError::from)?;
        Ok::<_, SqlError>(page.map(|page| (page, scan)))
    });
    pages
        .and_then(move |page| {
            let keys = page.rows.iter().map(|(key, value)| index.row_key(key, value)).collect::<SqlResult<Vec<_>>>();
            std::future::ready(keys)
        })
        .map_ok(|keys| {
            let chunks: Vec<SqlResult<Vec<Bytes>>> =
                keys.chunks(ROWS_AT_ONCE).map(|chunk| Ok(chunk.to_vec())).collect();
            stream::iter(chunks)
        })
        .try_flatten()
}
