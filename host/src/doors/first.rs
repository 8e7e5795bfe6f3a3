//! Chooses the listener of a connection by its first bytes, where several listeners share one address. Does no IO.
//!
//! A TLS ClientHello names the host that the client asks for (SNI) and the protocols that it offers (ALPN). Without TLS, the client's
//! first words decide; or its silence, if it waits for the server to speak first.

use rustls::server::Acceptor;

use crate::config::ListenerSettings;
use crate::listener::{Header, find_header};

/// How many of the first bytes are looked at, at most: one whole TLS record and a little more.
pub(super) const MOST: usize = 20 << 10;
/// A ClientHello may be cut into this many TLS records at most. All are looked at again for each that comes.
const RECORDS: usize = 8;
/// The header of a TLS record, in bytes.
const HEADER: usize = 5;
/// The first byte of a TLS record that carries handshake messages.
const HANDSHAKE: u8 = 22;

/// TLS's fatal alerts, as records (RFC 8446, 6; RFC 6066, 3; RFC 7301, 3.2).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
const NO_APPLICATION_PROTOCOL: &[u8] = &[21, 3, 3, 0, 2, 2, 120];

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Undecided: this many bytes are needed in all.
    More(usize),
    /// The connection belongs to this listener.
    Is(usize),
    /// It belongs to no listener: send this, then close.
    Nobody(&'static [u8]),
}

/// Decides by the first bytes of a connection. `silent`: the client has sent nothing for a while.
pub(super) fn whose(listeners: &[&ListenerSettings], first: &[u8], silent: bool) -> Verdict {
    let over_tls = |tls: bool| listeners.iter().enumerate().filter(move |(_, one)| one.tls == tls);
    match first.first() {
        Some(&HANDSHAKE) if over_tls(true).next().is_some() => greeting(&over_tls(true).collect::<Vec<_>>(), first),
        // All listeners are over TLS, where the client speaks first: its silence says nothing.
        None if over_tls(false).next().is_none() => Verdict::More(1),
        _ => in_the_clear(&over_tls(false).collect::<Vec<_>>(), first, silent),
    }
}

/// As [`whose`], for connections that a proxy may pass on. A connection that begins with a PROXY header is for the
/// host's own listeners (`own`), which trust it; the bytes behind the header select one of them.
pub(super) fn whose_passed_on(
    listeners: &[&ListenerSettings],
    own: impl Fn(usize) -> bool,
    first: &[u8],
    silent: bool,
) -> Verdict {
    let length = match find_header(first) {
        Header::Is(length) => length,
        Header::More(more) if !silent => return Verdict::More(more),
        Header::More(_) | Header::None => return whose(listeners, first, silent),
    };
    let (places, own): (Vec<usize>, Vec<&ListenerSettings>) =
        listeners.iter().enumerate().filter(|(at, _)| own(*at)).map(|(at, one)| (at, *one)).unzip();
    match whose(&own, &first[length..], silent) {
        Verdict::Is(at) => Verdict::Is(places[at]),
        Verdict::More(more) if length + more <= MOST => Verdict::More(length + more),
        Verdict::More(_) => Verdict::Nobody(&[]),
        nobody @ Verdict::Nobody(_) => nobody,
    }
}

fn in_the_clear(listeners: &[(usize, &&ListenerSettings)], first: &[u8], silent: bool) -> Verdict {
    let begins =
        || listeners.iter().flat_map(|(at, one)| one.marks.begins.iter().map(|begins| (begins.as_bytes(), *at)));
    let best = begins().filter(|(begins, _)| first.starts_with(begins)).max_by_key(|(begins, _)| begins.len());
    let longer = begins().any(|(begins, _)| begins.len() > first.len() && begins.starts_with(first));
    let rest = || listeners.iter().find(|(_, one)| one.marks.begins.is_empty()).map(|(at, _)| *at);
    match best.map(|(_, at)| at).or_else(rest) {
        // Without another candidate, silence decides nothing.
        best if longer && (!silent || best.is_none()) => Verdict::More(first.len() + 1),
        // A client that has sent nothing may be about to, or may wait for the server to speak first.
        Some(_) if first.is_empty() && !silent => Verdict::More(1),
        Some(at) => Verdict::Is(at),
        None if first.is_empty() => Verdict::More(1),
        None => Verdict::Nobody(&[]),
    }
}

fn greeting(listeners: &[(usize, &&ListenerSettings)], first: &[u8]) -> Verdict {
    if let [(at, one)] = listeners
        && one.marks.names.is_empty()
        && one.marks.alpn.is_empty()
    {
        return Verdict::Is(*at);
    }
    let whole = match records(first) {
        Ok(whole) => whole,
        Err(more) if more <= MOST => return Verdict::More(more),
        Err(_) => return Verdict::Nobody(&[]),
    };
    let mut acceptor = Acceptor::default();
    let mut rest = &first[..whole];
    // If this is not a ClientHello, any listener's TLS answers with the right alert.
    let broken = Verdict::Is(listeners[0].0);
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return broken;
        }
    }
    match acceptor.accept() {
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            let offered = || hello.alpn().into_iter().flatten();
            let fit = |of: &ListenerSettings| of.marks.fit(hello.server_name(), offered());
            // The first of those that fit equally well.
            let best = listeners.iter().rev().filter_map(|(at, of)| Some((fit(of)?, *at))).max_by_key(|(fit, _)| *fit);
            let named = listeners.iter().any(|(_, of)| of.marks.fit_name(hello.server_name()).is_some());
            match best {
                Some((_, at)) => Verdict::Is(at),
                None if named => Verdict::Nobody(NO_APPLICATION_PROTOCOL),
                None => Verdict::Nobody(UNRECOGNIZED_NAME),
            }
        }
        // The ClientHello continues in the next record.
        Ok(None) if whole + HEADER <= MOST => Verdict::More(whole + HEADER),
        Ok(None) => Verdict::Nobody(&[]),
        Err(_) => broken,
    }
}

/// The length of all records, if they are complete. Otherwise the error is the length that completes the last one.
fn records(first: &[u8]) -> Result<usize, usize> {
    let mut whole = 0;
    for _ in 0..RECORDS {
        let rest = &first[whole..];
        let Some(header) = rest.first_chunk::<HEADER>() else {
            return if rest.is_empty() && whole > 0 { Ok(whole) } else { Err(whole + HEADER) };
        };
        let end = whole + HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
        if end > first.len() {
            return Err(end);
        }
        whole = end;
    }
    // An honest client does not make more records.
    if whole == first.len() { Ok(whole) } else { Err(MOST + 1) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::config::{Settings, listeners};

    fn settings(text: &str) -> Vec<ListenerSettings> {
        let settings: Settings = toml_edit::de::from_str(text).unwrap();
        listeners(&settings).unwrap()
    }

    /// Web, chat and the rest over TLS; SSH, IRC and the rest in the clear.
    fn all() -> Vec<ListenerSettings> {
        settings(
            r#"
            [service.a.listen]
            web = { address = "127.0.0.1:443", tls = true, names = ["www.example.org"], alpn = ["h2", "http/1.1"] }
            chat = { address = "127.0.0.1:443", tls = true, names = ["chat.example.org"] }
            other = { address = "127.0.0.1:443", tls = true }
            ssh = { address = "127.0.0.1:443", begins = ["SSH-"] }
            irc = { address = "127.0.0.1:443", begins = ["NICK ", "CAP ", "PASS "] }
            slow = { address = "127.0.0.1:443" }
            "#,
        )
    }

    fn named(listeners: &[ListenerSettings], first: &[u8], silent: bool) -> Result<String, Verdict> {
        let all: Vec<&ListenerSettings> = listeners.iter().collect();
        match whose(&all, first, silent) {
            Verdict::Is(at) => Ok(listeners[at].name.clone()),
            other => Err(other),
        }
    }

    /// A real client's ClientHello.
    fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    #[test]
    fn the_first_bytes_select_the_listener() {
        let all = all();
        for (first, whose) in [
            (hello("www.example.org", &["http/1.1"]), "web"),
            (hello("www.example.org", &["h2", "http/1.1"]), "web"),
            (hello("www.example.org", &["irc"]), "other"),
            (hello("chat.example.org", &["irc"]), "chat"),
            (hello("elsewhere.org", &[]), "other"),
            (hello("127.0.0.1", &[]), "other"),
            (b"SSH-2.0-OpenSSH_10.0\r\n".to_vec(), "ssh"),
            (b"CAP LS 302\r\n".to_vec(), "irc"),
            (b"PASS ".to_vec(), "irc"),
            (b"GET / HTTP/1.1\r\n".to_vec(), "slow"),
            (b"SSSH".to_vec(), "slow"),
            (vec![0; 5], "slow"),
        ] {
            assert_eq!(named(&all, &first, false).as_deref(), Ok(whose), "{:?}", first.escape_ascii().to_string());
        }
        // A silent client waits for the server to speak first, or is about to send more.
        assert_eq!(named(&all, b"", false), Err(Verdict::More(1)));
        assert_eq!(named(&all, b"", true).as_deref(), Ok("slow"));
        assert_eq!(named(&all, b"NIC", false), Err(Verdict::More(4)));
        assert_eq!(named(&all, b"NIC", true).as_deref(), Ok("slow"));
    }

    #[test]
    fn behind_a_proxy_header_the_first_bytes_select_the_listener() {
        let all = all();
        let listeners: Vec<&ListenerSettings> = all.iter().collect();
        // As if these were the host's own: chat over TLS, and the rest in the clear.
        let own = |at: usize| ["chat", "slow"].contains(&all[at].name.as_str());
        let named = |first: &[u8], silent: bool| match whose_passed_on(&listeners, own, first, silent) {
            Verdict::Is(at) => Ok(all[at].name.clone()),
            other => Err(other),
        };
        let header = b"PROXY TCP4 10.1.2.3 192.168.0.1 12345 8787\r\n";
        let behind = |text: &[u8]| [header, text].concat();
        let chat = behind(&hello("chat.example.org", &[]));
        assert_eq!(named(&chat, false).as_deref(), Ok("chat"));
        for there in 1..chat.len() {
            let Err(Verdict::More(more)) = named(&chat[..there], false) else { panic!("{there}") };
            assert!(more > there && more <= chat.len(), "{there}: {more}");
        }
        // A name of a service's listener matches none of the host's own.
        assert_eq!(named(&behind(&hello("www.example.org", &["h2"])), false), Err(Verdict::Nobody(UNRECOGNIZED_NAME)));
        // The client waits for the host to speak first.
        assert_eq!(named(&behind(b""), false), Err(Verdict::More(header.len() + 1)));
        assert_eq!(named(&behind(b""), true).as_deref(), Ok("slow"));
        // Without a header, it is treated as any other connection.
        assert_eq!(named(b"SSH-2.0-x\r\n", false).as_deref(), Ok("ssh"));
        assert_eq!(named(&hello("www.example.org", &["h2"]), false).as_deref(), Ok("web"));
        assert_eq!(named(b"PASS x\r\n", false).as_deref(), Ok("irc"));
    }

    #[test]
    fn a_connection_that_matches_no_listener_is_refused() {
        let all = settings(
            r#"
            [service.a.listen]
            web = { address = "127.0.0.1:443", tls = true, names = ["www.example.org"], alpn = ["h2"] }
            ssh = { address = "127.0.0.1:443", begins = ["SSH-"] }
            "#,
        );
        let nobody = |first: &[u8]| named(&all, first, false).unwrap_err();
        assert_eq!(nobody(&hello("elsewhere.org", &["h2"])), Verdict::Nobody(UNRECOGNIZED_NAME));
        assert_eq!(nobody(&hello("www.example.org", &["irc"])), Verdict::Nobody(NO_APPLICATION_PROTOCOL));
        assert_eq!(nobody(b"GET /"), Verdict::Nobody(&[]));
        assert_eq!(named(&all, b"", true), Err(Verdict::More(1)), "nobody's turn");
        // Bytes that only look like TLS are refused by TLS.
        assert_eq!(named(&all, &[HANDSHAKE, 3, 1, 0, 4, 9, 0, 0, 0], false).as_deref(), Ok("web"));
        // A ClientHello that never ends is given up.
        let endless: Vec<u8> = std::iter::repeat_n([HANDSHAKE, 3, 1, 0, 1, 1], 100).flatten().collect();
        assert!(matches!(nobody_of(&all, &endless), Ok(_) | Err(Verdict::Nobody(_))));
    }

    fn nobody_of(all: &[ListenerSettings], first: &[u8]) -> Result<String, Verdict> {
        let mut have = 1;
        loop {
            match named(all, &first[..have.min(first.len())], false) {
                Err(Verdict::More(more)) if more <= first.len() => have = more,
                other => return other,
            }
        }
    }

    /// The same bytes, cut into records of this size.
    fn cut(hello: &[u8], size: usize) -> Vec<u8> {
        let body = &hello[HEADER..];
        let size = size.max(body.len().div_ceil(RECORDS));
        body.chunks(size)
            .flat_map(|part| {
                let length = u16::try_from(part.len()).unwrap().to_be_bytes();
                [&[HANDSHAKE, 3, 1, length[0], length[1]][..], part].concat()
            })
            .collect()
    }

    proptest! {
        /// The verdict does not depend on how the bytes arrive. Each request is for more bytes than have arrived, and
        /// never for more than all of them.
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_arrive(which in 0..5usize, records in 1..600usize, step in 1..40usize) {
            let all = all();
            let (first, whose) = match which {
                0 => (cut(&hello("www.example.org", &["h2"]), records), "web"),
                1 => (cut(&hello("chat.example.org", &[]), records), "chat"),
                2 => (cut(&hello("x.org", &["h2"]), records), "other"),
                3 => (b"SSH-2.0-x\r\n".to_vec(), "ssh"),
                _ => (b"NICK alice\r\n".to_vec(), "irc"),
            };
            let mut have = 0;
            loop {
                match named(&all, &first[..have], false) {
                    Err(Verdict::More(more)) => {
                        prop_assert!(more > have && more <= first.len(), "{more} of {}, has {have}", first.len());
                        have = (have + step).max(more).min(first.len());
                    }
                    other => {
                        prop_assert_eq!(other.as_deref(), Ok(whose));
                        break;
                    }
                }
            }
        }

        /// Any bytes get a verdict.
        #[test]
        fn any_first_bytes_get_a_verdict(mut first in prop::collection::vec(any::<u8>(), 0..300), tls: bool, silent: bool) {
            if tls && !first.is_empty() {
                first[0] = HANDSHAKE;
            }
            if let Err(Verdict::More(more)) = named(&all(), &first, silent) {
                prop_assert!(more > first.len() && more <= MOST);
            }
        }
    }
}
