//! The entrance for connections that others have accepted, where services' listeners share the address.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use rustls::ServerConfig;
use tokio::sync::mpsc;

use super::{Coming, EndpointState, Socket};

/// Leads to the threads of a listener, as long as that listens.
pub(crate) struct Entrance {
    shared: Weak<EndpointState>,
    threads: Vec<mpsc::WeakUnboundedSender<Coming>>,
    tls: Option<Arc<ServerConfig>>,
    next: AtomicUsize,
}

impl Entrance {
    pub(super) fn new(
        shared: Weak<EndpointState>,
        threads: Vec<mpsc::WeakUnboundedSender<Coming>>,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        Self { shared, threads, tls, next: AtomicUsize::new(0) }
    }

    /// Whether this is the address of a proxy, whose connections begin with a header that names their source.
    pub(crate) fn believes(&self, source: IpAddr) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.is_proxy(source))
    }

    /// Serves Perspective Broker on this connection, if there is a place for it. Nothing has been read from the socket,
    /// and it is non-blocking.
    pub(crate) fn come(&self, client: TcpStream, source: SocketAddr) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len().max(1);
        let thread = self.threads.get(next).and_then(mpsc::WeakUnboundedSender::upgrade);
        let (Some(thread), Some(shared)) = (thread, self.shared.upgrade()) else {
            return tracing::debug!(%source, "a connection is closed: the host is ending");
        };
        if let Some(admitted) = shared.admitted(source, self.tls.clone()) {
            // If nobody serves any more, the place is freed with it.
            let _ = thread.send(Coming::New(Socket::Tcp(client), admitted));
        }
    }
}
