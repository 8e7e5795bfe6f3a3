//! Connections within the host, from a login by a door to other services that its identity has keys for.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use plugin_api::abi::frame::ToLibrary;

use super::Doors;
use super::ends::{is_over, number};
use super::held::Held;
use super::lasting::Lasting;
use super::words::{Asker, LoggedIn, Wanted};
use crate::config::Grants;
use crate::listener::Within;
use crate::multiservice::Speaker;
use crate::session::login::ProvenBefore;
use crate::sessions::SessionEntry;

/// The origin of a login.
pub(super) enum Owner {
    /// A stream that the login belongs to.
    Stream(Arc<Held>),
    /// No stream: the login is remembered.
    Nothing(Arc<Lasting>),
}

impl Owner {
    pub(super) fn grants(&self) -> Grants {
        match self {
            Self::Stream(held) => held.listening.settings.grants,
            Self::Nothing(lasting) => lasting.grants,
        }
    }

    pub(super) fn entry(&self) -> &Arc<SessionEntry> {
        match self {
            Self::Stream(held) => &held.entry,
            Self::Nothing(lasting) => &lasting.entry,
        }
    }

    pub(super) fn door(&self) -> Arc<str> {
        match self {
            Self::Stream(held) => held.door().into(),
            Self::Nothing(lasting) => Arc::clone(&lasting.door),
        }
    }

    pub(super) fn source(&self) -> (SocketAddr, &str) {
        match self {
            Self::Stream(held) => (held.source, &held.peer),
            Self::Nothing(lasting) => (lasting.source, &lasting.peer),
        }
    }

    /// Its number, as a connection.
    fn number(&self) -> u64 {
        u64::from(match self {
            Self::Stream(held) => held.number,
            Self::Nothing(lasting) => lasting.connection,
        })
    }

    /// Whether the login is over.
    fn is_over(&self, login: u64) -> bool {
        match self {
            Self::Stream(held) => held.is_cut() || held.login().is_none_or(|has| has.number != login),
            Self::Nothing(lasting) => lasting.is_over(),
        }
    }

    /// Lends a descriptor that a frame to this generation is about to name.
    fn lend(&self, generation: u32, end: OwnedFd) -> Option<Arc<OwnedFd>> {
        match self {
            Self::Stream(held) => held.lend_way(end),
            Self::Nothing(lasting) => lasting.lend(generation, end),
        }
    }

    fn takes_back(&self, end: &Arc<OwnedFd>) {
        match self {
            Self::Stream(held) => held.takes_back(end),
            Self::Nothing(lasting) => lasting.takes_back(end),
        }
    }
}

impl Doors {
    /// The owner and the data of a login of this service. `None`: the login has ended.
    pub(super) fn owner(&self, from: Speaker<'_>, login: u64) -> Option<(Owner, LoggedIn)> {
        if let Some(lasting) = self.lasting_of(from, login).filter(|lasting| !lasting.is_over()) {
            let login = lasting.login();
            return Some((Owner::Nothing(lasting), login));
        }
        let of = self.logins.lock().get(&login).copied();
        let held = of.and_then(|number| self.stream_of(from, u64::from(number)));
        let whole = held.filter(|held| !(held.is_cut() || held.is_closing()))?;
        let login = whole.login().filter(|has| has.number == login)?;
        Some((Owner::Stream(whole), login))
    }

    /// The same, if the operator lets the service act for users who have logged in by it.
    pub(super) fn owner_for(&self, from: Speaker<'_>, login: u64, what: &str) -> Result<(Owner, LoggedIn), String> {
        let Some((owner, has)) = self.owner(from, login) else { return Err("the login has ended".to_owned()) };
        if owner.grants().attach {
            return Ok((owner, has));
        }
        let (service, may) = (from.service, "may = [\"attach\"] in credhost.toml");
        tracing::warn!(
            service,
            "the service tried to {what} users who have logged in by it, without permission: [service.{service}] {may}"
        );
        Err(format!(
            "the operator does not let the service {what} users who have logged in by it: [service.{service}] {may}"
        ))
    }

    /// A service wants a stream's login to outlive the stream.
    pub(super) fn remembers(&self, from: Speaker<'_>, asker: Asker, login: u64, wanted: Wanted, source: &str) {
        match self.owner(from, login) {
            Some((Owner::Stream(held), login)) => self.remember(asker, &held, login, wanted, held.whose(source)),
            Some(_) => self.refuse(asker, "the login is remembered already"),
            None => self.refuse(asker, "the login has ended"),
        }
    }

    /// A service asks for a connection to other services for a login.
    pub(super) fn attach(&self, from: Speaker<'_>, asker: Asker, login: u64) {
        let (owner, has) = match self.owner_for(from, login, "attach") {
            Ok(found) => found,
            Err(why) => return self.refuse(asker, why),
        };
        match self.way(&owner, &has, asker.generation) {
            Err(why) => self.refuse(asker, why),
            Ok(end) => {
                let (request, stream) = (asker.request, owner.number());
                self.later(move |me| {
                    let lent = ToLibrary::Lent {
                        request,
                        stream,
                        descriptor: number(&end),
                        asked: "",
                        certificate: &[],
                        protocol: &[],
                    };
                    if !me.answer(&asker, &lent) {
                        owner.takes_back(&end);
                    }
                });
            }
        }
    }

    /// Opens a connection. Returns the service's end.
    fn way(&self, owner: &Owner, login: &LoggedIn, generation: u32) -> Result<Arc<OwnedFd>, String> {
        let failed = |error: std::io::Error| format!("the connection cannot be made: {error}");
        let (own, theirs) = UnixStream::pair().map_err(failed)?;
        own.set_nonblocking(true).map_err(failed)?;
        {
            let mut ways = self.ways.lock();
            let all = ways.entry(login.number).or_default();
            all.retain(|way| !is_over(way));
            // Several generations may have the login, and each needs a connection.
            let most = self.limits.read().elsewhere;
            if all.len() >= most {
                return Err(format!("a login has {most} connections to other services at most"));
            }
            all.push(own.try_clone().map_err(failed)?);
        }
        // A login that ends from here on closes this connection.
        if owner.is_over(login.number) {
            self.over(login.number);
            return Err("the login has ended".to_owned());
        }
        let (identity, credential, removals) = (login.identity.as_str().into(), login.credential, login.removals);
        let proven = ProvenBefore { identity, credential, removals };
        let (source, peer) = owner.source();
        let within = Within { proven, entry: Arc::clone(owner.entry()), door: owner.door(), peer: peer.to_owned() };
        let serves = self.within.get().is_some_and(|ways| ways.serve(own, source, within));
        let end = serves.then(|| owner.lend(generation, theirs.into())).flatten();
        end.ok_or_else(|| "the host is ending".to_owned())
    }

    /// A login has ended: closes its connections to other services.
    pub(super) fn over(&self, login: u64) {
        self.logins.lock().remove(&login);
        self.close_ways(login);
    }

    /// Closes a login's connections to other services.
    pub(super) fn close_ways(&self, login: u64) {
        let ways = self.ways.lock().remove(&login);
        for way in ways.into_iter().flatten() {
            // The peer may have gone.
            let _ = way.shutdown(Shutdown::Both);
        }
    }
}
