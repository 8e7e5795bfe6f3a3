//! Connections from within: for clients that have logged in by a service's own door, to attach to other services.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use super::{Admitted, Coming, EndpointState, Socket};
use crate::session::login::ProvenBefore;
use crate::sessions::SessionEntry;

/// A client that has logged in by a door.
#[derive(Debug, Clone)]
pub(crate) struct Within {
    /// Its identity.
    pub(crate) proven: ProvenBefore,
    /// The connection that it logged in by, as the operator sees it.
    pub(crate) entry: Arc<SessionEntry>,
    /// The door, as in the trail: "ssh:ssh".
    pub(crate) door: Arc<str>,
    /// The client's address, for a person to read.
    pub(crate) peer: String,
}

/// Entrances on the threads of a listener, as long as that listens.
pub(crate) struct Ways {
    /// Weak: it leads to services, which own the doors, which own this.
    shared: Weak<EndpointState>,
    threads: Vec<mpsc::WeakUnboundedSender<Coming>>,
    next: AtomicUsize,
}

impl Ways {
    pub(super) fn new(shared: Weak<EndpointState>, threads: Vec<mpsc::WeakUnboundedSender<Coming>>) -> Self {
        Self { shared, threads, next: AtomicUsize::new(0) }
    }

    /// Serves Perspective Broker on this end, for this client only. `false`: the listener has closed.
    pub(crate) fn serve(&self, end: UnixStream, source: SocketAddr, within: Within) -> bool {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len().max(1);
        let Some(thread) = self.threads.get(next).and_then(mpsc::WeakUnboundedSender::upgrade) else { return false };
        let Some(shared) = self.shared.upgrade() else { return false };
        let within = Some(Box::new(within));
        thread
            .send(Coming::New(Socket::Within(end), Admitted { shared, source, place: None, tls: None, within }))
            .is_ok()
    }
}
