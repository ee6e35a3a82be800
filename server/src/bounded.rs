//! A port that holds only so many connections; for gRPC and HTTP, whose libraries accept without end.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use kv::Clock;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::clock::SystemClock;

/// Between attempts to accept when the process is out of file descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Accepts while there is room; a connection beyond that is closed without a word.
pub struct BoundedListener {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

/// A connection that gives its place back when it is dropped.
pub struct BoundedStream {
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
}

impl BoundedListener {
    /// At most `connections` at once.
    pub fn new(listener: TcpListener, connections: usize) -> Self {
        BoundedListener { listener, slots: Arc::new(Semaphore::new(connections)) }
    }

    /// The next connection that there is room for; small messages leave at once on it.
    pub async fn next(&self) -> (BoundedStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let Ok(slot) = self.slots.clone().try_acquire_owned() else { continue };
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "a connection was gone before it was served");
                        continue;
                    }
                    return (BoundedStream { stream, _slot: slot }, from);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    SystemClock.sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// All connections, for tonic.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<BoundedStream>> {
        futures::stream::unfold(self, |listener| async move { Some((Ok(listener.next().await.0), listener)) })
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        self.next().await
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected for BoundedStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_place_is_free_again_when_its_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounded = BoundedListener::new(listener, 1);
        let (_first, mut second) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (held, _) = bounded.next().await;
        let mut byte = [0];
        tokio::select! {
            _ = bounded.next() => panic!("there is no second place"),
            read = second.read(&mut byte) => assert_eq!(read.unwrap_or(0), 0, "closed without a word"),
        }
        drop(held);
        let _third = TcpStream::connect(address).await.unwrap();
        bounded.next().await;
    }
}
