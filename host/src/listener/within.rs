//! Connections from within: of whoever has logged in by a service's own door, to be attached elsewhere.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use super::{Admitted, Coming, EndpointState, Socket};
use crate::session::login::ProvenBefore;
use crate::sessions::SessionEntry;

/// Who has logged in, and how.
#[derive(Debug, Clone)]
pub(crate) struct Within {
    /// Who.
    pub(crate) proven: ProvenBefore,
    /// The connection that they have come by, as the operator sees it.
    pub(crate) entry: Arc<SessionEntry>,
    /// The door, as the trail has it: "ssh:ssh".
    pub(crate) door: Arc<str>,
    /// Where the client is, for a person to read.
    pub(crate) peer: String,
}

/// Ways in, on the threads of a listener: for as long as that listens.
pub(crate) struct Ways {
    /// It leads to services, and they to the doors that have this: these do not keep it.
    shared: Weak<EndpointState>,
    threads: Vec<mpsc::WeakUnboundedSender<Coming>>,
    next: AtomicUsize,
}

impl Ways {
    pub(super) fn new(shared: Weak<EndpointState>, threads: Vec<mpsc::WeakUnboundedSender<Coming>>) -> Self {
        Self { shared, threads, next: AtomicUsize::new(0) }
    }

    /// Serves Perspective Broker on this end, to nobody else. False: the listener has closed.
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
