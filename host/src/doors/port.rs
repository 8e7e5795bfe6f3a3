//! A socket, which several listeners may have.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::listening::{Bound, Listening};
use crate::listener::sources::{Most, Place, Sources};
use crate::login_gate::network;

/// A socket, and those who listen by it.
pub(super) struct Port {
    /// One, nearly always.
    pub(super) listeners: Vec<Arc<Listening>>,
    /// Connections that have not said whose they are.
    undecided: Mutex<Sources>,
}

impl Port {
    pub(super) fn new(listeners: Vec<Arc<Listening>>) -> Arc<Self> {
        Arc::new(Self { listeners, undecided: Mutex::default() })
    }

    /// Its socket, for a task that accepts.
    pub(super) fn socket(&self) -> io::Result<Bound> {
        self.listeners[0].socket()
    }

    /// Its socket, for whoever serves it next, with its name.
    pub(super) fn hand_on(&self) -> io::Result<(String, OwnedFd)> {
        self.listeners[0].hand_on()
    }

    /// A place among those that have not said whose they are: as many as all listeners have.
    pub(super) fn enter(&self, source: IpAddr, known: bool, proxy: bool) -> Option<Place> {
        let all = || self.listeners.iter().map(|one| &one.settings);
        let most = Most {
            connections: all().map(|one| one.connections).fold(0, usize::saturating_add),
            per_source: all().map(|one| one.per_source).max().unwrap_or(0),
        };
        let place = Place { source: (!proxy).then(|| network(source)), stranger: !known && !proxy };
        self.undecided.lock().enter(place, most).then_some(place)
    }

    /// A place is free again.
    pub(super) fn leave(&self, place: Place) {
        self.undecided.lock().leave(place);
    }
}
