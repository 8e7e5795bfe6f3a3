//! A listener's section in credhost.toml.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::config::grants::Grants;
use crate::config::listener::{Address, ListenerSettings, networks};
use crate::config::marks::Marks;

/// The name for connections by a Unix socket, in a list of proxies.
const UNIX: &str = "unix";

/// A listener's section in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    pub(super) address: String,
    pub(super) tls: bool,
    pub(super) starttls: bool,
    pub(super) certificates: bool,
    pub(super) plaintext: bool,
    pub(super) encrypted: bool,
    pub(super) connections: usize,
    pub(super) per_source: usize,
    pub(super) login: String,
    pub(super) idle: Option<String>,
    pub(super) grace: Option<String>,
    pub(super) stalled: Option<String>,
    pub(super) message: Option<String>,
    pub(super) rate: Option<usize>,
    pub(super) proxies: Vec<String>,
    pub(super) proxy_protocol: Vec<String>,
    pub(super) names: Vec<String>,
    pub(super) alpn: Vec<String>,
    pub(super) begins: Vec<String>,
    pub(super) mode: Option<String>,
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

impl Section {
    pub(super) fn read(self, service: &str, name: &str, grants: Grants) -> Result<ListenerSettings, String> {
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
            fits.then_some(time).ok_or_else(|| format!("{name} = {text:?}: the range is 1s to {longest}"))
        };
        let login = time("login", &login, 3600)?;
        let idle = idle.map(|text| time("idle", &text, 30 * 24 * 3600)).transpose()?;
        let grace = grace.map(|text| time("grace", &text, 365 * 24 * 3600)).transpose()?;
        let stalled = stalled.map(|text| time("stalled", &text, 3600)).transpose()?;
        let message = message.map(|text| time("message", &text, 3600)).transpose()?;
        if rate.is_some_and(|rate| !(1..=1_000_000).contains(&rate)) {
            return Err("rate is in bytes a second: the range is 1 to 1000000".to_owned());
        }
        if starttls && idle.is_some() {
            return Err("idle cannot be combined with starttls, only with tls or with neither".to_owned());
        }
        if tls && starttls {
            return Err(
                "tls and starttls exclude each other: a connection begins with TLS, or switches to it later".to_owned()
            );
        }
        if certificates && !tls && !starttls {
            return Err("certificates needs TLS: set tls = true or starttls = true".to_owned());
        }
        if connections == 0 || per_source == 0 {
            return Err("connections and per_source must be at least 1".to_owned());
        }
        let address = match shown.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(PathBuf::from(path)),
            Some(("unix", _)) => {
                return Err(format!("{shown:?}: a Unix socket needs an absolute path: \"unix:/run/…\""));
            }
            Some(("systemd", "")) | None => {
                return Err(format!(
                    "{shown:?} is not an address: \"127.0.0.1:6667\", \"unix:/run/chat.sock\" or \"systemd:NAME\""
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
        let proxy_protocol = networks(&proxy_protocol).map_err(|why| format!("proxy_protocol: {why}"))?;
        if !proxy_protocol.is_empty() && !proxies.is_empty() {
            return Err(
                "proxies and proxy_protocol exclude each other: a connection with a header belongs to one client"
                    .to_owned(),
            );
        }
        if !proxy_protocol.is_empty() && matches!(address, Address::Unix(_)) {
            return Err("proxy_protocol is for TCP connections".to_owned());
        }
        let clear = !tls && !starttls && !plaintext && !encrypted;
        if let Address::Tcp(found) = &address
            && let Some(open) = found.iter().find(|found| !found.ip().is_loopback())
            && clear
        {
            return Err(format!(
                "others can reach {open} and could read the traffic: set tls = true or starttls = true \
                 (`credhost tls init` makes certificates), encrypted = true where the protocol itself encrypts, as SSH, \
                 or insist with plaintext = true"
            ));
        }
        let unix_proxy = proxies.iter().any(|proxy| proxy == UNIX);
        let of_tcp: Vec<String> = proxies.into_iter().filter(|proxy| proxy != UNIX).collect();
        let proxies = networks(&of_tcp).map_err(|why| format!("proxies: {why}, or \"{UNIX}\""))?;
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

/// Parses file permissions, in chmod's notation: "0660".
fn permissions(text: &str) -> Result<u32, String> {
    let octal = text.len() >= 3 && text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| format!("mode = {text:?}: write permissions as for chmod: \"0660\""))
}
