//! Names of hosts, and what a client of TLS asks for (SNI, RFC 6066).

/// How well a name of a certificate, or of a listener, fits the host that a client asks for (RFC 6125, 6.4). 2: it is the same,
/// 1: its wildcard stands for it. `None`: it does not.
pub(crate) fn name_fits(name: &str, asked: &str) -> Option<u8> {
    // Of a name in DNS, the last dot says nothing.
    let asked = asked.strip_suffix('.').unwrap_or(asked);
    match name.strip_prefix("*.") {
        Some(parent) => {
            let (label, rest) = asked.split_once('.')?;
            (!label.is_empty() && rest.eq_ignore_ascii_case(parent)).then_some(1)
        }
        None => name.eq_ignore_ascii_case(asked).then_some(2),
    }
}
