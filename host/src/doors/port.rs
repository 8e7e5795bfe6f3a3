//! A listening socket, which several listeners may share.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::listening::{Bound, Listening};
use crate::listener::sources::{Most, Place, Sources};
use crate::login_gate::network;
use crate::session::Limits;

/// A listening socket, and its listeners.
pub(super) struct Port {
    /// Usually one.
    pub(super) listeners: Vec<Arc<Listening>>,
    /// Connections whose listener is not known yet.
    undecided: Mutex<Sources>,
}

impl Port {
    pub(super) fn new(listeners: Vec<Arc<Listening>>) -> Arc<Self> {
        Arc::new(Self { listeners, undecided: Mutex::default() })
    }

    /// Whether a connection from this source begins with a PROXY header.
    pub(super) fn has_header(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        // All listeners have the same setting.
        self.listeners[0].settings.proxy_protocol.iter().any(|proxies| proxies.contains(&source))
    }

    /// The socket, for the task that accepts connections.
    pub(super) fn socket(&self) -> io::Result<Bound> {
        self.listeners[0].socket()
    }

    /// The socket and its name, for the next host after an upgrade. `None`: it is one of the host's own, which hands it on itself.
    pub(super) fn hand_on(&self) -> Option<io::Result<(String, OwnedFd)>> {
        let first = &self.listeners[0];
        first.of_host.is_none().then(|| first.hand_on())
    }

    /// Takes a place among the undecided connections. There are as many places as all listeners have together, up to
    /// the host's own limit.
    pub(super) fn enter(&self, source: IpAddr, known: bool, proxy: bool, limits: &Limits) -> Option<Place> {
        let all = || self.listeners.iter().map(|one| &one.settings);
        let most = Most {
            connections: all().map(|one| one.connections).fold(0, usize::saturating_add).min(limits.connections),
            per_source: all().map(|one| one.per_source.min(limits.per_source)).max().unwrap_or(0),
        };
        let place = Place { source: (!proxy).then(|| network(source)), stranger: !known && !proxy };
        self.undecided.lock().enter(place, most).then_some(place)
    }

    /// Frees a place.
    pub(super) fn leave(&self, place: Place) {
        self.undecided.lock().leave(place);
    }
}
