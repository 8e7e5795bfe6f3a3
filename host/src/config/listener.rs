//! A listener's settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use plugin_api::pace::Rates;

use super::grants::Grants;
use super::marks::Marks;
use crate::session::Limits;

/// Parses the addresses and networks in a list of proxies.
///
/// # Errors
/// If one is neither.
pub fn networks(named: &[String]) -> Result<Vec<IpNet>, String> {
    let read = |text: &String| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let wrong = format!("{text:?} is neither an address nor a network, such as \"192.168.7.0/24\"");
        address.or_else(|_| text.parse()).map_err(|_| wrong)
    };
    named.iter().map(read).collect()
}

/// Parses the addresses and networks of proxies in `[pb] proxies`.
///
/// # Errors
/// Returns an error for a text that is neither, and names it.
pub fn proxies(named: &[String]) -> Result<Vec<IpNet>, String> {
    networks(named).map_err(|why| format!("[pb] proxies: {why}"))
}

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The first of these addresses that is available.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket, in its own file.
    Unix(PathBuf),
    /// A socket that systemd opened, by its `FileDescriptorName=`.
    Systemd(String),
}

/// One listener of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    /// The service's name.
    pub service: String,
    /// The listener's own name.
    pub name: String,
    /// Its address.
    pub address: Address,
    /// The address as written in credhost.toml.
    pub shown: String,
    /// Whether all of its connections use TLS.
    pub tls: bool,
    /// Whether clients can switch to TLS by a command of the service's protocol.
    pub starttls: bool,
    /// Whether TLS asks clients for a certificate.
    pub certificates: bool,
    /// Whether it may be in the clear where others can listen.
    pub plaintext: bool,
    /// Whether the service's protocol encrypts by itself, as SSH does.
    pub encrypted: bool,
    /// The most connections.
    pub connections: usize,
    /// The most connections from one address.
    pub per_source: usize,
    /// The time limit for a login.
    pub login: Duration,
    /// The idle timeout: a connection without a byte from the client in this time is closed. `None` for no timeout.
    pub idle: Option<Duration>,
    /// How long a connection that cannot be handed over may continue in replaced code. By default, as long as calls.
    pub grace: Option<Duration>,
    /// How long a client that reads too slowly is tolerated. By default, as in `[limits]`.
    pub stalled: Option<Duration>,
    /// The time in which a message that has begun must be complete, or have progressed. By default, as in `[limits]`.
    pub message: Option<Duration>,
    /// The rate at which messages must arrive, and output must be read, in bytes per second. By default, as in
    /// `[limits]`.
    pub rate: Option<usize>,
    /// The permissions of its service.
    pub grants: Grants,
    /// How its connections are distinguished from others at the same address.
    pub marks: Marks,
    /// Proxies that forward requests. They are trusted to name the client.
    pub proxies: Vec<IpNet>,
    /// Whether connections by a Unix socket are from such a proxy.
    pub unix_proxy: bool,
    /// Proxies that forward connections, and name the client first (PROXY protocol, version 1 or 2).
    pub proxy_protocol: Vec<IpNet>,
    /// The file permissions of a Unix socket. By default, everybody who can enter its folder may connect.
    pub mode: Option<u32>,
}

impl ListenerSettings {
    /// Whether a client at this address is a proxy. Without an address, the client came by a Unix socket.
    #[must_use]
    pub fn is_proxy(&self, source: Option<IpAddr>) -> bool {
        match source.map(|source| source.to_canonical()) {
            Some(source) => self.proxies.iter().any(|proxies| proxies.contains(&source)),
            None => self.unix_proxy,
        }
    }

    /// Whether it listens at this address. Never for port 0, with which each listener gets a port of its own.
    #[must_use]
    pub fn shares(&self, address: &Address) -> bool {
        let own_port = matches!(address, Address::Tcp(found) if found.iter().all(|one| one.port() == 0));
        let same = match (&self.address, address) {
            // A name may stand for several addresses, in any order.
            (Address::Tcp(own), Address::Tcp(other)) => {
                own.iter().all(|one| other.contains(one)) && other.iter().all(|one| own.contains(one))
            }
            (own, other) => own == other,
        };
        same && !own_port
    }

    /// Whether both have some address in common, but not all.
    fn meets(&self, other: &Self) -> bool {
        let (Address::Tcp(own), Address::Tcp(others)) = (&self.address, &other.address) else { return false };
        // IPv6's unspecified address includes those of IPv4.
        let has =
            |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let meet = |one: &SocketAddr, other: &SocketAddr| {
            let (own, theirs) = (one.ip(), other.ip());
            one.port() != 0 && one.port() == other.port() && (has(own, theirs) || has(theirs, own))
        };
        !self.shares(&other.address) && own.iter().any(|one| others.iter().any(|other| meet(one, other)))
    }

    /// Creates a listener of the host's own, for Perspective Broker. `place` is its place in the file.
    #[must_use]
    pub fn of_host(place: &str, shown: &str, addresses: Vec<SocketAddr>, tls: Option<Marks>) -> Self {
        Self {
            service: String::new(),
            name: place.to_owned(),
            address: Address::Tcp(addresses),
            shown: shown.to_owned(),
            tls: tls.is_some(),
            starttls: false,
            certificates: false,
            plaintext: false,
            encrypted: false,
            connections: usize::MAX,
            per_source: usize::MAX,
            login: Duration::ZERO,
            idle: None,
            grace: None,
            stalled: None,
            message: None,
            rate: None,
            grants: Grants::default(),
            marks: tls.unwrap_or_default(),
            proxies: Vec::new(),
            unix_proxy: false,
            proxy_protocol: Vec::new(),
            mode: None,
        }
    }

    /// The minimum speed of its clients.
    #[must_use]
    pub fn rates(&self, limits: &Limits) -> Rates {
        Rates {
            stalled: self.stalled.unwrap_or(limits.stalled),
            message: self.message.unwrap_or(limits.message.0),
            rate: self.rate.unwrap_or(limits.message.1),
        }
    }

    /// Its place in the file.
    #[must_use]
    pub fn place(&self) -> String {
        match self.service.as_str() {
            "" => self.name.clone(),
            service => format!("[service.{service}.listen] {}", self.name),
        }
    }

    /// The name of a setting of the shared socket that differs, if both share one.
    pub(super) fn differs(&self, other: &Self) -> Option<&'static str> {
        let same = self.shares(&other.address);
        let headers = same && self.proxy_protocol != other.proxy_protocol;
        (same && self.mode != other.mode).then_some("mode").or(headers.then_some("proxy_protocol"))
    }

    /// Why this and another listener cannot coexist, if they have the same address and nothing distinguishes their
    /// connections.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> Option<String> {
        let same = other.shares(&self.address) && other.tls == self.tls && other.marks.overlap(&self.marks);
        let by = match (self.tls, self.service.is_empty() && other.service.is_empty()) {
            (true, _) => "such as names = [\"chat.example.org\"] or alpn = [\"irc\"]",
            (false, false) => "such as begins = [\"SSH-\"]",
            (false, true) => {
                "because clients of Perspective Broker wait for the host to speak first: only one of them can be there"
            }
        };
        if same {
            let place = other.place();
            return Some(format!(
                "{:?} is also the address of {place}, and nothing distinguishes their connections, {by}",
                self.shown
            ));
        }
        self.meets(other).then(|| {
            let (place, shown) = (other.place(), &other.shown);
            format!("{:?} and {shown:?}, the address of {place}, overlap: use the same address for both", self.shown)
        })
    }

    /// The same listener, for a service with these permissions.
    #[must_use]
    pub fn granted(self, grants: Grants) -> Self {
        Self { grants, ..self }
    }
}
