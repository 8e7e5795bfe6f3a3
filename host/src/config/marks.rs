//! How connections are distinguished when several listeners share one address.

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::asked_name::name_fits;

/// The longest `begins`, in bytes.
const LONGEST: usize = 64;

/// Which connections belong to a listener that shares its address. If all lists are empty: those that belong to no
/// other listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Marks {
    /// Host names that a client asks for in TLS (SNI, RFC 6066). `*.example.org` matches any one label in front.
    #[serde(default)]
    pub names: Vec<String>,
    /// Protocols that a client offers in TLS (ALPN, RFC 7301). The listener offers the same ones, and the first that
    /// the client also has is chosen.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// The first bytes from a client without TLS, such as `"SSH-"`.
    #[serde(default)]
    pub begins: Vec<String>,
}

/// How well a connection matches a listener. Larger is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fit {
    /// 2: the exact name, 1: a wildcard, 0: any name.
    name: u8,
    /// Whether the listener names a protocol.
    protocol: bool,
}

impl Marks {
    /// These marks in words for the operator, or an empty text.
    #[must_use]
    pub fn shown(&self) -> String {
        let all = [("names", &self.names), ("alpn", &self.alpn), ("begins", &self.begins)];
        let said = all.iter().filter(|(_, texts)| !texts.is_empty()).map(|(key, texts)| format!("{key} = {texts:?}"));
        said.collect::<Vec<_>>().join(", ")
    }

    /// Checks the values.
    ///
    /// # Errors
    /// If a value is wrong: which one, and why.
    pub(super) fn check(&self, tls: bool, starttls: bool) -> Result<(), String> {
        let over_tls = !self.names.is_empty() || !self.alpn.is_empty();
        if over_tls && !tls {
            let why = if starttls { "with starttls, TLS begins only later" } else { "set tls = true" };
            return Err(format!("names and alpn are read from the TLS handshake: {why}"));
        }
        if tls && !self.begins.is_empty() {
            return Err(
                "begins matches what a client sends in the clear; over TLS, names and alpn distinguish connections"
                    .to_owned(),
            );
        }
        for name in &self.names {
            let plain = name.strip_prefix("*.").unwrap_or(name);
            // Clients omit the trailing dot of a name (RFC 6066, 3).
            if plain.ends_with('.') || rustls_pki_types::DnsName::try_from(plain).is_err() {
                return Err(format!("names: {name:?} is not a host name: \"chat.example.org\", \"*.example.org\""));
            }
        }
        if let Some(wrong) = self.alpn.iter().find(|one| one.is_empty() || one.len() > 255) {
            return Err(format!("alpn: {wrong:?} is not a protocol name: \"h2\", \"http/1.1\""));
        }
        match self.begins.iter().find(|one| one.is_empty() || one.len() > LONGEST) {
            Some(wrong) => Err(format!("begins: {wrong:?} must have 1 to {LONGEST} bytes")),
            None => Ok(()),
        }
    }

    /// Whether some connection matches both listeners equally. Both must be over TLS, or both not.
    #[must_use]
    pub(super) fn overlap(&self, other: &Self) -> bool {
        let share = |one: &[String], other: &[String]| {
            one.is_empty() && other.is_empty()
                || one.iter().any(|one| other.iter().any(|other| one.eq_ignore_ascii_case(other)))
        };
        let exact = |one: &[String], other: &[String]| {
            one.is_empty() && other.is_empty() || one.iter().any(|one| other.contains(one))
        };
        share(&self.names, &other.names) && exact(&self.alpn, &other.alpn) && exact(&self.begins, &other.begins)
    }

    /// How well a ClientHello matches that asks for this host and offers these protocols. `None` if it does not match.
    #[must_use]
    pub fn fit<'a>(&self, asked: Option<&str>, mut offered: impl Iterator<Item = &'a [u8]>) -> Option<Fit> {
        let (name, protocol) = (self.fit_name(asked)?, !self.alpn.is_empty());
        let fits = !protocol || offered.any(|offered| self.alpn.iter().any(|own| own.as_bytes() == offered));
        fits.then_some(Fit { name, protocol })
    }

    /// How well the host name alone matches. 2: by its name, 1: by a wildcard, 0: any host matches.
    #[must_use]
    pub fn fit_name(&self, asked: Option<&str>) -> Option<u8> {
        if self.names.is_empty() {
            return Some(0);
        }
        let asked = asked?;
        self.names.iter().filter_map(|name| name_fits(name, asked)).max()
    }
}

/// The address of Perspective Broker over TLS: an address, or a table with one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsListen {
    /// The address.
    pub address: String,
    /// How its connections are distinguished from others at the same address.
    pub marks: Marks,
}

impl<'de> Deserialize<'de> for TlsListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            address: String,
            #[serde(default)]
            names: Vec<String>,
            #[serde(default)]
            alpn: Vec<String>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = TlsListen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address, such as \"0.0.0.0:8788\", or a table with one")
            }

            fn visit_str<E>(self, address: &str) -> Result<TlsListen, E> {
                Ok(TlsListen { address: address.to_owned(), marks: Marks::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TlsListen, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                let marks = Marks { names: table.names, alpn: table.alpn, begins: Vec::new() };
                marks.check(true, false).map_err(serde::de::Error::custom)?;
                Ok(TlsListen { address: table.address, marks })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(names: &[&str], alpn: &[&str], begins: &[&str]) -> Marks {
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Marks { names: all(names), alpn: all(alpn), begins: all(begins) }
    }

    #[test]
    fn a_greeting_goes_to_the_best_matching_listener() {
        let all = [
            marks(&[], &[], &[]),
            marks(&["*.example.org"], &[], &[]),
            marks(&["chat.example.org"], &[], &[]),
            marks(&["chat.example.org"], &["h2"], &[]),
            marks(&[], &["irc"], &[]),
        ];
        for (asked, offered, best) in [
            (None, &[][..], 0),
            (Some("example.org"), &[], 0),
            (Some("www.example.org"), &[], 1),
            (Some("WWW.Example.ORG"), &[], 1),
            (Some("a.b.example.org"), &[], 0),
            (Some(".example.org"), &[], 0),
            (Some("Chat.example.org"), &[], 2),
            (Some("chat.example.org"), &["http/1.1"], 2),
            (Some("chat.example.org"), &["http/1.1", "h2"], 3),
            (Some("other"), &["irc"], 4),
            (Some("www.example.org"), &["irc"], 1),
            (None, &["IRC"], 0),
        ] {
            let offered = || offered.iter().map(|text| text.as_bytes());
            let fits = all.iter().enumerate().filter_map(|(at, marks)| Some((marks.fit(asked, offered())?, at)));
            assert_eq!(fits.max().map(|(_, at)| at), Some(best), "{asked:?} {:?}", offered().collect::<Vec<_>>());
        }
        assert_eq!(all[2].fit(None, [].into_iter()), None);
    }

    #[test]
    fn listeners_overlap_if_nothing_tells_connections_apart() {
        let none = || marks(&[], &[], &[]);
        for (one, other, overlap) in [
            (none(), none(), true),
            (none(), marks(&["a"], &[], &[]), false),
            (marks(&["a"], &[], &[]), marks(&["b", "A"], &[], &[]), true),
            (marks(&["a"], &["h2"], &[]), marks(&["a"], &[], &[]), false),
            (marks(&["a"], &["h2"], &[]), marks(&["a"], &["h2", "x"], &[]), true),
            (marks(&["*.a"], &[], &[]), marks(&["b.a"], &[], &[]), false),
            (marks(&[], &[], &["SSH-"]), none(), false),
            (marks(&[], &[], &["SSH-"]), marks(&[], &[], &["SSH-2"]), false),
            (marks(&[], &[], &["SSH-"]), marks(&[], &[], &["GET ", "SSH-"]), true),
        ] {
            assert_eq!((one.overlap(&other), other.overlap(&one)), (overlap, overlap), "{one:?} {other:?}");
        }
    }
}
