//! Host names, and the name that a TLS client asks for (SNI, RFC 6066).

/// How well a name of a certificate, or of a listener, matches the host that a client asks for (RFC 6125, 6.4). 2: it
/// is the same, 1: its wildcard matches. `None` if it does not match.
pub(crate) fn name_fits(name: &str, asked: &str) -> Option<u8> {
    // A trailing dot in a DNS name has no meaning here.
    let asked = asked.strip_suffix('.').unwrap_or(asked);
    match name.strip_prefix("*.") {
        Some(parent) => {
            let (label, rest) = asked.split_once('.')?;
            (!label.is_empty() && rest.eq_ignore_ascii_case(parent)).then_some(1)
        }
        None => name.eq_ignore_ascii_case(asked).then_some(2),
    }
}
