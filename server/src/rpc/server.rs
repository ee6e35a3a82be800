//! The gRPC port: all services, health, reflection.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tonic::transport::Server;

use super::{
    DESCRIPTORS, MESSAGE_BYTES_MAX,
    channels::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES},
    services::Services,
    stubs::{
        admin_server::AdminServer, founding_server::FoundingServer, kv_server::KvServer, pd_server::PdServer,
        public_kv_server::PublicKvServer, raft_server::RaftServer,
    },
};
use crate::bounded::BoundedListener;

/// Calls under way on one connection: a node's sessions share one. Past it callers wait.
const STREAMS_PER_CONNECTION: u32 = 10_000;

/// Founding and admin messages are small: a few addresses and region pages.
const SMALL_MESSAGE_BYTES: usize = 4 << 20;

/// A write of the public KV service at its limit, and what is around its keys and values.
const PUBLIC_MESSAGE_BYTES: usize = kv::space::BATCH_BYTES_MAX + (1 << 20);

/// A vanished peer is noticed and its streams are dropped.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Serves until `stopping` turns true, then lets calls under way end.
pub async fn serve(
    services: Services,
    listener: BoundedListener,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<KvServer<Services>>().await;
    health.set_serving::<PublicKvServer<Services>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let kv = KvServer::new(services.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let raft = RaftServer::new(services.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let pd = PdServer::new(services.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let founding = FoundingServer::new(services.clone()).max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let public = PublicKvServer::new(services.clone())
        .max_decoding_message_size(PUBLIC_MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(services).max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(kv)
        .add_service(raft)
        .add_service(pd)
        .add_service(founding)
        .add_service(admin)
        .add_service(public)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(listener.into_stream(), async move {
            stopping.wait_for(|stop| *stop).map(|_| ()).await
        })
        .await?;
    Ok(())
}
