//! A listener's settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use plugin_api::pace::Rates;

use super::grants::Grants;
use super::marks::Marks;
use crate::session::Limits;

/// Addresses and networks, as lists of proxies have them.
///
/// # Errors
/// Which is neither.
pub fn networks(named: &[String]) -> Result<Vec<IpNet>, String> {
    let read = |text: &String| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let wrong = format!("{text:?} is neither an address nor a network, such as \"192.168.7.0/24\"");
        address.or_else(|_| text.parse()).map_err(|_| wrong)
    };
    named.iter().map(read).collect()
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On these addresses, whichever can be had.
    Tcp(Vec<SocketAddr>),
    /// On a Unix socket, a file of its own.
    Unix(PathBuf),
    /// On a socket that systemd has opened: by its `FileDescriptorName=`.
    Systemd(String),
}

/// One listener of a service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    /// The service's name.
    pub service: String,
    /// The listener's own.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// The same, as it is written in credhost.toml.
    pub shown: String,
    /// Whether all that comes by it is TLS.
    pub tls: bool,
    /// Whether a client can go over to TLS where the service's protocol has a word for it.
    pub starttls: bool,
    /// Whether clients are asked for a certificate by TLS.
    pub certificates: bool,
    /// Whether it may be in the clear where others can listen.
    pub plaintext: bool,
    /// Whether the service's protocol encrypts by itself, as SSH does.
    pub encrypted: bool,
    /// The most connections.
    pub connections: usize,
    /// The most of one address.
    pub per_source: usize,
    /// How long a login may take.
    pub login: Duration,
    /// After how long without a byte from the client a connection is closed, if ever.
    pub idle: Option<Duration>,
    /// How long a connection that cannot be carried over may go on in code that was replaced, if not for as long as calls.
    pub grace: Option<Duration>,
    /// How long a client that reads too little is waited for, if not for as long as `[limits]` has it.
    pub stalled: Option<Duration>,
    /// Within what time a message that has begun has to be whole, or to have come on, if not within that of `[limits]`.
    pub message: Option<Duration>,
    /// At what rate it has to come, and what waits to be read, in bytes a second, if not at that of `[limits]`.
    pub rate: Option<usize>,
    /// What its service may do.
    pub grants: Grants,
    /// What its connections have that others' at the same address have not.
    pub marks: Marks,
    /// Proxies that pass on others' requests, and are believed when they say whose.
    pub proxies: Vec<IpNet>,
    /// Whether whoever comes by a Unix socket is one.
    pub unix_proxy: bool,
    /// Proxies that pass on others' connections, and say first whose (PROXY protocol, version 1 or 2).
    pub proxy_protocol: Vec<IpNet>,
    /// Who may come by a Unix socket, as file permissions; where it is not said, whoever may enter its folder.
    pub mode: Option<u32>,
}

impl ListenerSettings {
    /// Whether a client at this address is a proxy, or one by a Unix socket, if there is none.
    #[must_use]
    pub fn is_proxy(&self, source: Option<IpAddr>) -> bool {
        match source.map(|source| source.to_canonical()) {
            Some(source) => self.proxies.iter().any(|proxies| proxies.contains(&source)),
            None => self.unix_proxy,
        }
    }

    /// Whether it listens at this address, and not at a port of its own.
    #[must_use]
    pub fn shares(&self, address: &Address) -> bool {
        let own_port = matches!(address, Address::Tcp(found) if found.iter().all(|one| one.port() == 0));
        let same = match (&self.address, address) {
            // A name may stand for several, in any order.
            (Address::Tcp(own), Address::Tcp(other)) => {
                own.iter().all(|one| other.contains(one)) && other.iter().all(|one| own.contains(one))
            }
            (own, other) => own == other,
        };
        same && !own_port
    }

    /// Whether both would have some address, and do not share all that they have.
    fn meets(&self, other: &Self) -> bool {
        let (Address::Tcp(own), Address::Tcp(others)) = (&self.address, &other.address) else { return false };
        // The unspecified address of IPv6 has those of IPv4, too.
        let has =
            |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let meet = |one: &SocketAddr, other: &SocketAddr| {
            let (own, theirs) = (one.ip(), other.ip());
            one.port() != 0 && one.port() == other.port() && (has(own, theirs) || has(theirs, own))
        };
        !self.shares(&other.address) && own.iter().any(|one| others.iter().any(|other| meet(one, other)))
    }

    /// A listener of the host's own, for Perspective Broker: `place` is what says where it is in the file.
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

    /// How fast its clients have to be.
    #[must_use]
    pub fn rates(&self, limits: &Limits) -> Rates {
        Rates {
            stalled: self.stalled.unwrap_or(limits.stalled),
            message: self.message.unwrap_or(limits.message.0),
            rate: self.rate.unwrap_or(limits.message.1),
        }
    }

    /// Where it is in the file.
    #[must_use]
    pub fn place(&self) -> String {
        match self.service.as_str() {
            "" => self.name.clone(),
            service => format!("[service.{service}.listen] {}", self.name),
        }
    }

    /// What of both concerns their socket, if they have one together, and is not the same.
    pub(super) fn differs(&self, other: &Self) -> Option<&'static str> {
        let same = self.shares(&other.address);
        let headers = same && self.proxy_protocol != other.proxy_protocol;
        (same && self.mode != other.mode).then_some("mode").or(headers.then_some("proxy_protocol"))
    }

    /// Why this and another cannot both be, if they listen at one address, and nothing tells their connections apart.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> Option<String> {
        let same = other.shares(&self.address) && other.tls == self.tls && other.marks.overlap(&self.marks);
        let by = match (self.tls, self.service.is_empty() && other.service.is_empty()) {
            (true, _) => "such as names = [\"chat.example.org\"] or alpn = [\"irc\"]",
            (false, false) => "such as begins = [\"SSH-\"]",
            (false, true) => {
                "for clients of Perspective Broker wait for the host's word: only one of them can be there"
            }
        };
        if same {
            let place = other.place();
            return Some(format!(
                "{:?} is the address of {place}, too, and nothing tells their connections apart, {by}",
                self.shown
            ));
        }
        self.meets(other).then(|| {
            let (place, shown) = (other.place(), &other.shown);
            format!(
                "{:?} and {shown:?}, the address of {place}, are partly the same: say the same for both",
                self.shown
            )
        })
    }

    /// The same, of a service that may do this.
    #[must_use]
    pub fn granted(self, grants: Grants) -> Self {
        Self { grants, ..self }
    }
}
