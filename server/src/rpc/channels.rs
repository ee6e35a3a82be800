//! Connections to other nodes, one per address, shared by all calls.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// On loopback and in a data centre a connection is there in milliseconds; a host that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A silent connection is asked whether it lives; together these are how long a vanished host (no reset) goes unnoticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Raft frames and scan pages are large; HTTP/2's 64 KiB windows would make each of them wait for its reader.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Several streams' worth.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How many addresses are kept. A cluster has far fewer; a list that grows past it is thrown away and refilled.
const ADDRESSES_MAX: usize = 4096;

/// Lazily opened connections that come back by themselves.
#[derive(Debug, Default)]
pub struct Channels(Mutex<std::collections::HashMap<Arc<str>, Channel>>);

impl Channels {
    /// The connection to `address` (`host:port`). Fails only on an address that can't be one.
    pub fn to(&self, address: &Arc<str>) -> Result<Channel, tonic::transport::Error> {
        let mut known = self.0.lock();
        if let Some(channel) = known.get(address) {
            return Ok(channel.clone());
        }
        if known.len() >= ADDRESSES_MAX {
            known.clear();
        }
        let channel = endpoint(address)?.connect_lazy();
        known.insert(address.clone(), channel.clone());
        Ok(channel)
    }
}

/// How a node or tool connects.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

/// Whether the request behind `status` certainly never left: no connection could be made.
pub fn was_never_sent(status: &Status) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::stubs::admin_client::AdminClient;
    use proto::wire::ClusterStatusRequest;

    #[tokio::test]
    async fn a_closed_port_means_never_sent() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let channels = Channels::default();
        let address: Arc<str> = port.to_string().into();
        for _ in 0..2 {
            let mut client = AdminClient::new(channels.to(&address).unwrap());
            let status = client.cluster_status(ClusterStatusRequest {}).await.unwrap_err();
            assert!(was_never_sent(&status), "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_may_have_been_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
        let breaking = async { drop(listener.accept().await.unwrap()) };
        let mut client = AdminClient::new(Channels::default().to(&address).unwrap());
        let (status, ()) = tokio::join!(client.cluster_status(ClusterStatusRequest {}), breaking);
        assert!(!was_never_sent(&status.unwrap_err()));
    }
}
