//! The public KV service over gRPC: messages, deadlines, status codes.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use kv::{
    Clock, Error, SpaceError,
    space::{Mode, Namespace, ScanQuery},
};
use node::PublicKv as Core;
use proto::wire::{
    self, CompareAndSwapRequest, CompareAndSwapResponse, CreateNamespaceRequest, CreateNamespaceResponse, KeyValue,
    ListNamespacesRequest, ListNamespacesResponse, ListRequest, ListResponse, NamespaceMode, ReadRequest, ReadResponse,
    WriteRequest, WriteResponse,
};
use tonic::{Request, Response, Status, async_trait, metadata::MetadataMap};

use super::{services::Services, stubs::public_kv_server::PublicKv};
use crate::clock::SystemClock;

/// At the deadline itself the transport cuts the call off, and says CANCELLED: this much before it we say what it is.
const BEFORE_THE_TRANSPORT: Duration = Duration::from_millis(20);

/// A call without a deadline of its own. Longer than what the client underneath tries.
const LONGEST_CALL: Duration = Duration::from_secs(20);

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    fn public_kv(&self) -> Result<Core, Status> {
        self.node.public_kv().ok_or_else(|| {
            Status::unavailable("this node has not found its cluster yet; its log says what it waits for")
        })
    }
}

/// The caller's deadline (`grpc-timeout`: digits and a unit), or the longest.
fn patience(metadata: &MetadataMap) -> Result<Duration, Status> {
    let Some(text) = metadata.get("grpc-timeout") else { return Ok(LONGEST_CALL) };
    let parsed = text.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let count: u64 = digits.parse().ok().filter(|_| plain)?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    });
    let asked = parsed.ok_or_else(|| Status::invalid_argument("grpc-timeout is not digits and a unit"))?;
    Ok(asked.min(LONGEST_CALL))
}

/// Gives a call up at its deadline.
async fn within<T>(patience: Duration, call: impl Future<Output = Result<T, SpaceError>>) -> Result<T, Status> {
    let ours = patience - BEFORE_THE_TRANSPORT.min(patience / 10);
    match select(std::pin::pin!(call), SystemClock.sleep(ours)).await {
        Either::Left((answer, _)) => answer.map_err(status),
        Either::Right(_) => {
            Err(Status::deadline_exceeded(format!("not done within {patience:?}; a write may be made yet")))
        }
    }
}

fn status(error: SpaceError) -> Status {
    let text = error.to_string();
    match error {
        SpaceError::Bad(_) => Status::invalid_argument(text),
        SpaceError::NoNamespace(_) => Status::not_found(text),
        SpaceError::OtherMode(_) => Status::already_exists(text),
        SpaceError::NotStrong(..) => Status::failed_precondition(text),
        SpaceError::Kv(error) => match error {
            Error::Conflict { .. }
            | Error::ReadConflict { .. }
            | Error::Aborted
            | Error::Fenced
            | Error::AlreadyExists { .. }
            | Error::RowLocked { .. }
            | Error::LockTimeout
            | Error::Deadlock(_) => Status::aborted(text),
            Error::CommitUnknown(_) => Status::unknown(text),
            Error::Unavailable(_) => Status::unavailable(text),
            Error::DiskFull(_) | Error::TooLarge(_) => Status::resource_exhausted(text),
            // Timestamps come from tokens.
            Error::BadTimestamp(_) => Status::invalid_argument(text),
            // A scan that was begun long ago: it has to begin again.
            Error::SnapshotTooOld { .. } => Status::out_of_range(text),
            Error::Corrupt(_) => Status::data_loss(text),
        },
    }
}

fn to_wire(namespace: Namespace) -> wire::Namespace {
    let mode = match namespace.mode {
        Mode::Strong => NamespaceMode::Strong,
        Mode::Eventual => NamespaceMode::Eventual,
    };
    wire::Namespace { name: namespace.name, mode: mode as i32 }
}

fn pairs(rows: Vec<(Bytes, Bytes)>) -> Vec<KeyValue> {
    rows.into_iter().map(|(key, value)| KeyValue { key, value }).collect()
}

#[async_trait]
impl PublicKv for Services {
    async fn create_namespace(&self, request: Request<CreateNamespaceRequest>) -> Answer<CreateNamespaceResponse> {
        let patience = patience(request.metadata())?;
        let asked = request.into_inner().namespace.unwrap_or_default();
        let mode = match asked.mode() {
            NamespaceMode::Strong => Mode::Strong,
            NamespaceMode::Eventual => Mode::Eventual,
            NamespaceMode::Unspecified => {
                return Err(Status::invalid_argument("which mode? NAMESPACE_MODE_STRONG or NAMESPACE_MODE_EVENTUAL"));
            }
        };
        let made = within(patience, self.public_kv()?.create(&asked.name, mode)).await?;
        Ok(Response::new(CreateNamespaceResponse { namespace: Some(to_wire(made)) }))
    }

    async fn list_namespaces(&self, request: Request<ListNamespacesRequest>) -> Answer<ListNamespacesResponse> {
        let found = within(patience(request.metadata())?, self.public_kv()?.list()).await?;
        Ok(Response::new(ListNamespacesResponse { namespaces: found.into_iter().map(to_wire).collect() }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Answer<ReadResponse> {
        let patience = patience(request.metadata())?;
        let ReadRequest { namespace, keys } = request.into_inner();
        let values = within(patience, self.public_kv()?.get(&namespace, &keys)).await?;
        let found = keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?)));
        Ok(Response::new(ReadResponse { pairs: pairs(found.collect()) }))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Answer<WriteResponse> {
        let patience = patience(request.metadata())?;
        let WriteRequest { namespace, changes } = request.into_inner();
        let changes: Vec<_> = changes.into_iter().map(|c| (c.key, c.value)).collect();
        within(patience, self.public_kv()?.write(&namespace, &changes)).await?;
        Ok(Response::new(WriteResponse {}))
    }

    async fn compare_and_swap(&self, request: Request<CompareAndSwapRequest>) -> Answer<CompareAndSwapResponse> {
        let patience = patience(request.metadata())?;
        let CompareAndSwapRequest { namespace, key, expected, value } = request.into_inner();
        let core = self.public_kv()?;
        let swap = core.compare_and_swap(&namespace, &key, expected.as_ref(), value.as_ref());
        let swapped = within(patience, swap).await?;
        let current = swapped.as_ref().err().cloned().flatten();
        Ok(Response::new(CompareAndSwapResponse { swapped: swapped.is_ok(), current }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        let patience = patience(request.metadata())?;
        let ListRequest { namespace, start_key, end_key, limit, reverse, keys_only, token } = request.into_inner();
        let query = ScanQuery { start: start_key, end: end_key, limit: limit as usize, reverse, keys_only, token };
        let page = within(patience, self.public_kv()?.scan(&namespace, &query)).await?;
        Ok(Response::new(ListResponse { pairs: pairs(page.rows), token: page.token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_and_bounded() {
        let read = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
            patience(&metadata)
        };
        assert_eq!(read("250m").unwrap(), Duration::from_millis(250));
        assert_eq!(read("3S").unwrap(), Duration::from_secs(3));
        assert_eq!(read("99999999H").unwrap(), LONGEST_CALL);
        for bad in ["", "m", "-1m", "+1m", "123456789m", "1x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(patience(&MetadataMap::new()).unwrap(), LONGEST_CALL);
    }

    #[test]
    fn every_refusal_has_its_code() {
        let code = |e: Error| status(e.into()).code();
        assert_eq!(code(Error::CommitUnknown("x".into())), tonic::Code::Unknown);
        assert_eq!(code(Error::Conflict { key: Bytes::new() }), tonic::Code::Aborted);
        assert_eq!(code(Error::Unavailable("x".into())), tonic::Code::Unavailable);
        assert_eq!(status(SpaceError::NoNamespace("x".into())).code(), tonic::Code::NotFound);
        assert_eq!(status(SpaceError::Bad("x".into())).code(), tonic::Code::InvalidArgument);
    }
}
