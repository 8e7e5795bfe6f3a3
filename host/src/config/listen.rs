//! `[service.NAME.listen]`: where services' own doors listen.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use plugin_api::pace::Rates;
use serde::Deserialize;

use super::Settings;
use super::confined::{ALLOW, ISOLATION, MOST};
use super::marks::Marks;
use crate::session::Limits;

/// What of a service's section is the host's.
const LISTEN: &str = "listen";
/// What else is.
const MAY: &str = "may";
/// Whoever comes by a Unix socket, among proxies.
const UNIX: &str = "unix";

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

/// What the operator lets a service do beside serving its own clients: `may = ["attach", "credentials", "vouch"]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// It may attach those who have logged in by its doors to perspectives of other services, in their name.
    pub attach: bool,
    /// Its word is taken that a client has proven to have a key.
    pub vouch: bool,
    /// Those who have logged in by its doors may change what they log in with there.
    pub credentials: bool,
}

impl Grants {
    /// What a service's section grants.
    ///
    /// # Errors
    /// When it is no list of words that there are.
    fn of(section: &serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let mut all = Self::default();
        let words = match section.get(MAY) {
            None => return Ok(all),
            Some(serde_json::Value::Array(words)) => words,
            Some(_) => return Err("expected a list, such as [\"attach\"]".to_owned()),
        };
        for word in words {
            match word.as_str() {
                Some("attach") => all.attach = true,
                Some("vouch") => all.vouch = true,
                Some("credentials") => all.credentials = true,
                _ => {
                    return Err(format!(
                        "{word} is nothing that a service may do: \"attach\", \"credentials\", \"vouch\""
                    ));
                }
            }
        }
        Ok(all)
    }
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
    /// A listener of a service at this address, written as in credhost.toml.
    ///
    /// # Errors
    /// When that is none.
    pub fn at(service: &str, name: &str, address: &str) -> Result<Self, String> {
        Section { address: address.to_owned(), ..Section::default() }.read(service, name, Grants::default())
    }

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
    fn differs(&self, other: &Self) -> Option<&'static str> {
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

/// A listener, as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    address: String,
    tls: bool,
    starttls: bool,
    certificates: bool,
    plaintext: bool,
    encrypted: bool,
    connections: usize,
    per_source: usize,
    login: String,
    idle: Option<String>,
    grace: Option<String>,
    stalled: Option<String>,
    message: Option<String>,
    rate: Option<usize>,
    proxies: Vec<String>,
    proxy_protocol: Vec<String>,
    names: Vec<String>,
    alpn: Vec<String>,
    begins: Vec<String>,
    mode: Option<String>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            address: String::new(),
            tls: false,
            starttls: false,
            certificates: false,
            plaintext: false,
            encrypted: false,
            connections: 1000,
            per_source: 64,
            login: "30 s".to_owned(),
            idle: None,
            grace: None,
            stalled: None,
            message: None,
            rate: None,
            proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            names: Vec::new(),
            alpn: Vec::new(),
            begins: Vec::new(),
            mode: None,
        }
    }
}

/// The service's own section: without what is the host's.
#[must_use]
pub fn own(section: &serde_json::Map<String, serde_json::Value>) -> serde_json::Map<String, serde_json::Value> {
    let hosts = |(key, value): &(&String, &serde_json::Value)| {
        let of_one = matches!(key.as_str(), MAY | ISOLATION | ALLOW);
        of_one || matches!(key.as_str(), LISTEN | MOST) && value.is_object()
    };
    section.iter().filter(|pair| !hosts(pair)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// All listeners of services'.
///
/// # Errors
/// What of one cannot be, with its place.
pub fn listeners(settings: &Settings) -> Result<Vec<ListenerSettings>, String> {
    let mut all: Vec<ListenerSettings> = Vec::new();
    for (service, section) in &settings.service {
        let grants = Grants::of(section).map_err(|why| format!("[service.{service}] {MAY}: {why}"))?;
        let Some(serde_json::Value::Object(listen)) = section.get(LISTEN) else { continue };
        let tls = |key: &str| listen.get(key).and_then(serde_json::Value::as_bool);
        let (over, start) = (tls("tls").unwrap_or(false), tls("starttls").unwrap_or(false));
        // What is said of all of a service's listeners, beside their names.
        let of_all = |key: &str, value: &serde_json::Value| matches!(key, "tls" | "starttls") && value.is_boolean();
        let named = listen.iter().filter(|(key, value)| !of_all(key, value));
        // One listener has one address, or several.
        let each = named.flat_map(|(name, value)| match value {
            serde_json::Value::Array(values) => values.iter().map(|value| (name, value)).collect(),
            value => vec![(name, value)],
        });
        for (name, value) in each {
            let at = |why: &str| format!("[service.{service}.listen] {name}: {why}");
            let section = match value {
                serde_json::Value::String(address) => {
                    Section { address: address.clone(), tls: over, starttls: start, ..Section::default() }
                }
                serde_json::Value::Object(_) => {
                    let mut section: Section = serde_json::from_value(value.clone())
                        .map_err(|error| at(&crate::plain::words(&error.to_string())))?;
                    (section.tls, section.starttls) = (section.tls || over, section.starttls || start);
                    section
                }
                _ => {
                    return Err(at(
                        "expected an address, such as \"127.0.0.1:6667\", a table with one, or a list of such",
                    ));
                }
            };
            let read = section.read(service, name, grants).map_err(|why| at(&why))?;
            if let Some((what, other)) = all.iter().find_map(|other| Some((read.differs(other)?, other))) {
                return Err(at(&format!(
                    "{what}: it is one socket with that of {}: say the same for both",
                    other.place()
                )));
            }
            if let Some(why) = all.iter().find_map(|other| read.overlaps(other)) {
                return Err(at(&why));
            }
            all.push(read);
        }
    }
    Ok(all)
}

/// Checks that connections of the host's own listeners can be told from others' at the same address.
///
/// # Errors
/// Which of them cannot, with its place.
pub fn apart(of_host: &[ListenerSettings], of_services: &[ListenerSettings]) -> Result<(), String> {
    for (at, one) in of_host.iter().enumerate() {
        let mut others = of_host.iter().skip(at + 1).chain(of_services);
        if let Some(why) = others.find_map(|other| one.overlaps(other)) {
            return Err(format!("{}: {why}", one.place()));
        }
        // The host's own say by themselves whose word they take.
        let of_service = |other: &&ListenerSettings| other.shares(&one.address) && !other.proxy_protocol.is_empty();
        if let Some(other) = of_services.iter().find(of_service) {
            let why = "proxy_protocol: that is said by [pb] proxies where Perspective Broker has the same address";
            return Err(format!("{}: {why}", other.place()));
        }
    }
    Ok(())
}

/// The host's own listeners, as far as their addresses are some.
#[must_use]
pub fn of_host(settings: &Settings) -> Vec<ListenerSettings> {
    let sections = settings.multiservice.iter().map(|(name, section)| {
        (format!("[multiservice.{name}]"), section.listen.as_ref(), section.listen_tls.as_ref())
    });
    let pb = ("[pb]".to_owned(), Some(&settings.pb.listen), settings.pb.listen_tls.as_ref());
    let both = std::iter::once(pb).chain(sections).flat_map(|(place, listen, listen_tls)| {
        let clear = listen.map(|address| (format!("{place} listen"), address, None));
        let tls = listen_tls.map(|tls| (format!("{place} listen_tls"), &tls.address, Some(tls.marks.clone())));
        clear.into_iter().chain(tls)
    });
    let read = |(place, shown, tls): (String, &String, Option<Marks>)| {
        let addresses = shown.to_socket_addrs().ok()?.collect();
        Some(ListenerSettings::of_host(&place, shown, addresses, tls))
    };
    both.filter_map(read).collect()
}

impl Section {
    fn read(self, service: &str, name: &str, grants: Grants) -> Result<ListenerSettings, String> {
        let Self { address: shown, tls, starttls, plaintext, encrypted, connections, per_source, .. } = self;
        let Self {
            login,
            idle,
            grace,
            stalled,
            message,
            rate,
            proxies,
            certificates,
            names,
            alpn,
            begins,
            mode,
            proxy_protocol,
            ..
        } = self;
        let marks = Marks { names, alpn, begins };
        marks.check(tls, starttls)?;
        let time = |name: &str, text: &str, most: u64| {
            let time = humantime::parse_duration(text);
            let time = time.map_err(|error| format!("{name} = {text:?}: {error}; a time is \"30 s\""))?;
            let fits = (1..=most).contains(&time.as_secs());
            let longest = humantime::format_duration(Duration::from_secs(most));
            fits.then_some(time).ok_or_else(|| format!("{name} = {text:?}: it may be from 1s to {longest}"))
        };
        let login = time("login", &login, 3600)?;
        let idle = idle.map(|text| time("idle", &text, 30 * 24 * 3600)).transpose()?;
        let grace = grace.map(|text| time("grace", &text, 365 * 24 * 3600)).transpose()?;
        let stalled = stalled.map(|text| time("stalled", &text, 3600)).transpose()?;
        let message = message.map(|text| time("message", &text, 3600)).transpose()?;
        if rate.is_some_and(|rate| !(1..=1_000_000).contains(&rate)) {
            return Err("rate is in bytes a second: it may be from 1 to 1000000".to_owned());
        }
        if starttls && idle.is_some() {
            return Err("idle is for listeners that are TLS from the beginning, or never: starttls has none".to_owned());
        }
        if tls && starttls {
            return Err("tls and starttls are one or the other: all that comes is TLS, or it becomes so".to_owned());
        }
        if certificates && !tls && !starttls {
            return Err("certificates are shown by TLS: set tls = true or starttls = true".to_owned());
        }
        if connections == 0 || per_source == 0 {
            return Err("connections and per_source begin at 1".to_owned());
        }
        let address = match shown.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(PathBuf::from(path)),
            Some(("unix", _)) => return Err(format!("{shown:?}: a Unix socket needs its whole path: \"unix:/run/…\"")),
            Some(("systemd", "")) | None => {
                return Err(format!(
                    "{shown:?} is no address: \"127.0.0.1:6667\", \"unix:/run/chat.sock\" or \"systemd:NAME\""
                ));
            }
            Some(("systemd", name)) => Address::Systemd(name.to_owned()),
            Some(_) => {
                let found = shown.to_socket_addrs().map_err(|error| format!("{shown:?}: {error}"))?;
                Address::Tcp(found.collect())
            }
        };
        let mode = mode.map(|text| permissions(&text)).transpose()?;
        if mode.is_some() && !matches!(address, Address::Unix(_)) {
            return Err("mode is for a Unix socket: \"unix:/run/…\"".to_owned());
        }
        let proxy_protocol =
            crate::config::networks(&proxy_protocol).map_err(|why| format!("proxy_protocol: {why}"))?;
        if !proxy_protocol.is_empty() && !proxies.is_empty() {
            return Err(
                "proxies and proxy_protocol are one or the other: a connection that has a header is its client's"
                    .to_owned(),
            );
        }
        if !proxy_protocol.is_empty() && matches!(address, Address::Unix(_)) {
            return Err("proxy_protocol is for connections by TCP".to_owned());
        }
        let clear = !tls && !starttls && !plaintext && !encrypted;
        if let Address::Tcp(found) = &address
            && let Some(open) = found.iter().find(|found| !found.ip().is_loopback())
            && clear
        {
            return Err(format!(
                "{open} can be reached by others, and they could listen: set tls = true or starttls = true \
                 (`credhost tls init` makes certificates), encrypted = true where the protocol does so by itself, as SSH, \
                 or insist with plaintext = true"
            ));
        }
        let unix_proxy = proxies.iter().any(|proxy| proxy == UNIX);
        let of_tcp: Vec<String> = proxies.into_iter().filter(|proxy| proxy != UNIX).collect();
        let proxies = crate::config::networks(&of_tcp).map_err(|why| format!("proxies: {why}, or \"{UNIX}\""))?;
        let (service, name) = (service.to_owned(), name.to_owned());
        Ok(ListenerSettings {
            service,
            name,
            address,
            shown,
            tls,
            starttls,
            certificates,
            plaintext,
            encrypted,
            connections,
            per_source,
            login,
            idle,
            grace,
            stalled,
            message,
            rate,
            grants,
            marks,
            proxies,
            unix_proxy,
            proxy_protocol,
            mode,
        })
    }
}

/// Permissions of a file, as they are written for chmod: "0660".
fn permissions(text: &str) -> Result<u32, String> {
    let octal = text.len() >= 3 && text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| format!("mode = {text:?}: permissions are written as for chmod: \"0660\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<ListenerSettings>, String> {
        listeners(&toml_edit::de::from_str(text).unwrap())
    }

    #[test]
    fn a_listener_is_an_address_or_a_table_with_one() {
        let all = read(
            "[service.chat]\ntitle = \"x\"\n[service.chat.listen]\nirc = \"127.0.0.1:6667\"\n\
             ircs = { address = \"0.0.0.0:6697\", tls = true, connections = 5, login = \"1 min\" }\n\
             local = \"unix:/run/chat.sock\"\nother = \"systemd:chat\"\n",
        )
        .unwrap();
        let of = |name: &str| all.iter().find(|one| one.name == name).unwrap().clone();
        assert_eq!(of("irc").address, Address::Tcp(vec!["127.0.0.1:6667".parse().unwrap()]));
        assert_eq!((of("ircs").tls, of("ircs").connections, of("ircs").login.as_secs()), (true, 5, 60));
        assert_eq!(of("local").address, Address::Unix("/run/chat.sock".into()));
        assert_eq!(of("other").address, Address::Systemd("chat".to_owned()));
    }

    #[test]
    fn a_listener_may_have_several_addresses() {
        let all =
            read("[service.chat.listen]\nirc = [\"127.0.0.1:6667\", { address = \"0.0.0.0:6697\", tls = true }]\n")
                .unwrap();
        assert_eq!(
            all.iter().map(|one| (one.name.as_str(), one.tls)).collect::<Vec<_>>(),
            [("irc", false), ("irc", true)]
        );
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place() {
        let all = [
            ("irc = 6667", "expected an address"),
            ("irc = \"6667\"", "is no address"),
            ("irc = \"unix:chat.sock\"", "whole path"),
            ("irc = \"0.0.0.0:6667\"", "can be reached by others"),
            ("irc = \"systemd:\"", "is no address"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, starttls = true }", "one or the other"),
            ("irc = { address = \"127.0.0.1:1\", conections = 1 }", "conections"),
            ("irc = { address = \"127.0.0.1:1\", connections = 0 }", "begin at 1"),
            ("irc = { address = \"127.0.0.1:1\", login = \"soon\" }", "login"),
            ("irc = { address = \"127.0.0.1:1\", login = \"0 s\" }", "from 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", login = \"500000000 years\" }", "from 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", idle = \"1 min\", starttls = true }", "idle is for"),
            ("irc = \"127.0.0.1:1\"\nother = \"127.0.0.1:1\"", "is the address of [service.chat.listen] irc"),
            ("irc = \"127.0.0.1:1\"\nother = { address = \"0.0.0.0:1\", plaintext = true }", "are partly the same"),
            ("irc = \"[::1]:1\"\nother = { address = \"[::]:1\", tls = true }", "are partly the same"),
            (
                "irc = { address = \"127.0.0.1:1\", tls = true }\nother = { address = \"127.0.0.1:1\", tls = true }",
                "names = [",
            ),
            ("irc = { address = \"127.0.0.1:1\", names = [\"a.org\"] }", "set tls = true"),
            ("irc = { address = \"127.0.0.1:1\", alpn = [\"irc\"], starttls = true }", "with starttls"),
            ("irc = { address = \"127.0.0.1:1\", begins = [\"SSH-\"], tls = true }", "in the clear"),
            ("irc = { address = \"127.0.0.1:1\", certificates = true }", "by TLS"),
            ("irc = { address = \"127.0.0.1:1\", begins = [\"\"] }", "1 to 64 bytes"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, names = [\"a b\"] }", "no name of a host"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, names = [\"a.org.\"] }", "no name of a host"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, alpn = [\"\"] }", "no protocol's name"),
            ("irc = { address = \"127.0.0.1:1\", grace = \"for ever\" }", "grace"),
            (
                "irc = { address = \"unix:/run/x\", begins = [\"A\"] }\nother = { address = \"unix:/run/x\", mode = \"0660\" }",
                "one socket with that of [service.chat.listen] irc",
            ),
            (
                "irc = { address = \"127.0.0.1:1\", proxy_protocol = [\"::1\"], proxies = [\"::1\"] }",
                "are one or the other: a connection",
            ),
            ("irc = { address = \"unix:/run/x\", proxy_protocol = [\"10.0.0.1\"] }", "by TCP"),
            (
                "irc = { address = \"127.0.0.1:1\", proxy_protocol = [\"nginx\"] }",
                "proxy_protocol: \"nginx\" is neither",
            ),
            (
                "irc = { address = \"127.0.0.1:1\", begins = [\"A\"] }\nother = { address = \"127.0.0.1:1\", proxy_protocol = [\"::1\"] }",
                "proxy_protocol: it is one socket",
            ),
            ("irc = { address = \"unix:/run/x\", mode = \"rw\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = \"0999\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = \"4660\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = 660 }", "a text is expected"),
            ("irc = { address = \"127.0.0.1:1\", mode = \"0660\" }", "for a Unix socket"),
            ("irc = { address = \"127.0.0.1:1\", stalled = \"2 h\" }", "from 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", message = 5 }", "a text is expected"),
            ("irc = { address = \"127.0.0.1:1\", rate = 0 }", "bytes a second"),
            ("irc = { address = \"127.0.0.1:1\", proxies = [\"nginx\"] }", "neither an address nor a network"),
        ];
        for (line, wanted) in all {
            let said = read(&format!("[service.chat.listen]\n{line}\n")).unwrap_err();
            assert!(said.contains("[service.chat.listen]") && said.contains(wanted), "{line}: {said}");
        }
    }

    #[test]
    fn the_hosts_own_listeners_are_told_from_services_at_the_same_address() {
        let apart = |pb: &str, service: &str| {
            let text = format!("{pb}\n[service.chat.listen]\nirc = {service}\n");
            let settings: Settings = toml_edit::de::from_str(&text).unwrap();
            super::apart(&of_host(&settings), &listeners(&settings).unwrap())
        };
        let tls = |marks: &str| format!("{{ address = \"127.0.0.1:1\", tls = true{marks} }}");
        let pb = |marks: &str| format!("[pb]\nlisten_tls = {{ address = \"127.0.0.1:1\"{marks} }}");
        for (pb, service, place) in [
            ("[pb]\nlisten = \"127.0.0.1:1\"".to_owned(), "\"127.0.0.1:1\"".to_owned(), "[pb] listen"),
            ("[pb]\nlisten_tls = \"127.0.0.1:1\"".to_owned(), tls(""), "[pb] listen_tls"),
            (pb(", names = [\"a.org\"]"), tls(", names = [\"A.org\"]"), "[pb] listen_tls"),
            (pb(""), tls(""), "[pb] listen_tls"),
            (
                "[multiservice.games]\nlisten = \"127.0.0.1:1\"".to_owned(),
                "\"127.0.0.1:1\"".to_owned(),
                "[multiservice.games] listen",
            ),
        ] {
            let why = apart(&pb, &service).unwrap_err();
            assert!(why.starts_with(place) && why.contains("[service.chat.listen] irc"), "{pb} {service}: {why}");
        }
        let behind = tls(", proxy_protocol = [\"10.0.0.1\"]");
        let why = apart("[pb]\nlisten = \"127.0.0.1:1\"", &behind).unwrap_err();
        assert!(why.starts_with("[service.chat.listen] irc: proxy_protocol") && why.contains("[pb] proxies"), "{why}");
        for (pb, service) in [
            ("[pb]\nlisten = \"127.0.0.1:2\"".to_owned(), behind),
            ("[pb]\nlisten = \"127.0.0.1:1\"".to_owned(), tls("")),
            (
                "[pb]\nlisten = \"127.0.0.1:1\"".to_owned(),
                "{ address = \"127.0.0.1:1\", begins = [\"SSH-\"] }".to_owned(),
            ),
            (pb(", names = [\"a.org\"]"), tls("")),
            (pb(", alpn = [\"pb\"]"), tls(", names = [\"a.org\"]")),
            ("[pb]\nlisten_tls = \"127.0.0.1:2\"".to_owned(), tls("")),
        ] {
            assert_eq!(apart(&pb, &service), Ok(()), "{pb} {service}");
        }
        let two = "[pb]\nlisten_tls = \"127.0.0.1:1\"\n[multiservice.a]\nlisten_tls = \"127.0.0.1:1\"\n";
        let settings: Settings = toml_edit::de::from_str(two).unwrap();
        assert!(super::apart(&of_host(&settings), &[]).is_err());
        for wrong in ["{ address = \"127.0.0.1:1\", begins = [\"x\"] }", "{ names = [\"a.org\"] }", "5"] {
            let text = format!("[pb]\nlisten_tls = {wrong}\n");
            let said = toml_edit::de::from_str::<Settings>(&text).unwrap_err().to_string();
            assert!(said.contains("listen_tls"), "{said}");
        }
    }

    #[test]
    fn a_proxy_is_one_that_was_named() {
        let all =
            read("[service.web.listen]\nhttp = { address = \"127.0.0.1:1\", proxies = [\"10.0.0.0/8\", \"::1\"] }\n")
                .unwrap();
        let is = |source: &str| all[0].is_proxy(Some(source.parse().unwrap()));
        assert!(is("10.1.2.3") && is("::ffff:10.1.2.3") && is("::1"));
        assert!(!is("11.0.0.1") && !is("127.0.0.1") && !all[0].is_proxy(None));
        let all = read("[service.web.listen]\nhttp = { address = \"unix:/run/x\", proxies = [\"unix\"] }\n").unwrap();
        assert!(all[0].is_proxy(None) && !all[0].is_proxy(Some("127.0.0.1".parse().unwrap())));
    }

    #[test]
    fn a_service_may_do_what_the_operator_lets_it() {
        let listener = |may: &str, listen: &str| {
            let text = format!("[service.ssh]\n{may}\n[service.ssh.listen]\nssh = {listen}\n");
            read(&text).map(|all| all[0].clone())
        };
        let near = "\"127.0.0.1:2222\"";
        let grants = listener("may = [\"attach\", \"vouch\"]", near).unwrap().grants;
        assert_eq!(grants, Grants { attach: true, vouch: true, credentials: false });
        assert_eq!(listener("", near).unwrap().grants, Grants::default());
        for (may, wanted) in
            [("[\"fly\"]", "\"fly\" is nothing"), ("\"attach\"", "a list"), ("5", "a list"), ("[5]", "5 is nothing")]
        {
            let said = listener(&format!("may = {may}"), near).unwrap_err();
            assert!(said.starts_with("[service.ssh] may: ") && said.contains(wanted), "{may}: {said}");
        }
        // What it may do says nothing of how it can be listened to: the listener says so.
        let all = listener("may = [\"vouch\"]", "\"0.0.0.0:2222\"").unwrap_err();
        assert!(all.contains("can be reached by others"), "{all}");
        assert!(listener("", "{ address = \"0.0.0.0:2222\", encrypted = true }").unwrap().encrypted);
    }

    #[test]
    fn a_service_is_handed_what_is_its_own() {
        let settings: Settings = toml_edit::de::from_str(
            "[service.a]\nx = 1\nmay = [\"attach\"]\n[service.a.listen]\nirc = \"127.0.0.1:1\"\n[service.b]\nlisten = \"own\"\n",
        )
        .unwrap();
        assert_eq!(own(&settings.service["a"]).keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(own(&settings.service["b"]).len(), 1, "a text of that name is the service's own");
    }
}
