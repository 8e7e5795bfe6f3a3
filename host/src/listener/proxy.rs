//! The PROXY protocol, versions 1 and 2: a proxy begins each connection with a header that names its source
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The signature of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, in bytes.
const LONGEST_1: usize = 107;
/// The longest accepted header of version 2, in bytes after its first 16: addresses and further fields.
const LONGEST_2: usize = 4 << 10;

/// Reads the header, and nothing behind it. `None`: the proxy connects for itself, to check whether the host is alive.
///
/// # Errors
/// Returns an error if the connection does not begin with a header, or the header cannot be parsed.
pub(crate) async fn header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    read(stream).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("the connection ends within its PROXY header"),
        _ => error,
    })
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut bytes = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut bytes).await?;
    if bytes == SIGNATURE {
        bytes.resize(16, 0);
        stream.read_exact(&mut bytes[12..]).await?;
        let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        if length > LONGEST_2 {
            return Err(wrong("the PROXY header is too long"));
        }
        bytes.resize(16 + length, 0);
        stream.read_exact(&mut bytes[16..]).await?;
    } else if bytes.starts_with(b"PROXY ") {
        while !bytes.ends_with(b"\r\n") {
            if bytes.len() == LONGEST_1 {
                return Err(wrong("the PROXY header is too long"));
            }
            // One by one: what follows is the client's.
            bytes.push(stream.read_u8().await?);
        }
    } else {
        return Err(wrong("a proxy's connection must begin with a PROXY header, and this one does not"));
    }
    match ProxyHeader::parse(&bytes, ParseConfig::default()) {
        Ok((header, read)) if read == bytes.len() => Ok(header.proxied_address().map(|address| address.source)),
        Ok(_) => Err(wrong("the PROXY header is longer than it declares")),
        Err(error) => Err(wrong(&format!("the PROXY header cannot be read: {error}"))),
    }
}

/// The source of a connection from a proxy: the address in the header, if there is one. A loopback address counts only
/// if the proxy's own address is one: otherwise passwords in the clear would cross a network.
pub(crate) fn behind(proxy: SocketAddr, said: Option<SocketAddr>) -> SocketAddr {
    let near = |source: &SocketAddr| source.ip().to_canonical().is_loopback();
    said.filter(|said| !near(said) || near(&proxy)).unwrap_or(proxy)
}

/// What the first bytes of a connection say about a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// There is none.
    None,
    /// This many bytes are needed in all to decide.
    More(usize),
    /// There is one, with this many bytes, and all have arrived.
    Is(usize),
}

/// Finds the end of the header in the first bytes of a connection, whatever the header says.
pub(crate) fn find_header(first: &[u8]) -> Header {
    const WORD: &[u8] = b"PROXY ";
    let begins = |with: &[u8]| first.len() < with.len() && with.starts_with(first);
    let whole = |length: usize| if first.len() < length { Header::More(length) } else { Header::Is(length) };
    if first.is_empty() {
        return Header::None;
    }
    if begins(WORD) || begins(SIGNATURE) {
        return Header::More(first.len() + 1);
    }
    if first.starts_with(SIGNATURE) {
        let Some(start) = first.first_chunk::<16>() else { return Header::More(16) };
        let length = usize::from(u16::from_be_bytes([start[14], start[15]]));
        return if length > LONGEST_2 { Header::None } else { whole(16 + length) };
    }
    if !first.starts_with(WORD) {
        return Header::None;
    }
    match first.windows(2).take(LONGEST_1 - 1).position(|window| window == b"\r\n") {
        Some(at) => Header::Is(at + 2),
        None if first.len() >= LONGEST_1 => Header::None,
        None => Header::More(first.len() + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_a_remote_proxy_is_never_local() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (far, near) = (at("10.0.0.5:9"), at("127.0.0.1:9"));
        for (proxy, said, wanted) in [
            (far, None, far),
            (far, Some(at("10.1.2.3:4")), at("10.1.2.3:4")),
            (far, Some(at("127.0.0.1:4")), far),
            (far, Some(at("[::1]:4")), far),
            (far, Some(at("[::ffff:127.0.0.1]:4")), far),
            (near, Some(at("127.0.0.1:4")), at("127.0.0.1:4")),
            (near, Some(at("10.1.2.3:4")), at("10.1.2.3:4")),
        ] {
            assert_eq!(behind(proxy, said), wanted, "{proxy} says {said:?}");
        }
    }

    /// The result of reading some bytes, and the bytes that are left.
    fn read_all(bytes: &[u8]) -> (Result<Option<String>, String>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = bytes;
        let read = runtime.block_on(header(&mut rest));
        let read = read.map(|source| source.map(|source| source.to_string())).map_err(|error| error.to_string());
        (read, rest.to_vec())
    }

    fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, addresses, b"next"].concat()
    }

    #[test]
    fn a_header_names_the_source_and_the_bytes_after_it_remain() {
        let four = [10, 1, 2, 3, 192, 168, 0, 1, 0x30, 0x39, 0x22, 0x53];
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (7, 1, 80, 81);
        // With another field after the addresses: a unique id.
        let more = [&four[..], &[0x05, 0, 2, b'i', b'd']].concat();
        let whose = |text: &str| Ok(Some(text.to_owned()));
        for (bytes, expected) in [
            (b"PROXY TCP4 10.1.2.3 192.168.0.1 12345 8787\r\nnext".to_vec(), whose("10.1.2.3:12345")),
            (b"PROXY TCP6 ::7 ::1 80 81\r\nnext".to_vec(), whose("[::7]:80")),
            (b"PROXY UNKNOWN\r\nnext".to_vec(), Ok(None)),
            (version_2(1, 0x11, &four), whose("10.1.2.3:12345")),
            (version_2(1, 0x11, &more), whose("10.1.2.3:12345")),
            (version_2(1, 0x21, &six), whose("[::7]:80")),
            (version_2(0, 0, &[]), Ok(None)),
        ] {
            assert_eq!(read_all(&bytes), (expected, b"next".to_vec()), "{bytes:?}");
        }
    }

    /// With any number of bytes, `find_header` agrees with `header`.
    #[test]
    fn finding_a_header_and_reading_it_agree_on_its_end() {
        let four = [10, 1, 2, 3, 192, 168, 0, 1, 0x30, 0x39, 0x22, 0x53];
        for bytes in [
            b"PROXY TCP4 10.1.2.3 192.168.0.1 12345 8787\r\nnext".to_vec(),
            b"PROXY UNKNOWN\r\nnext".to_vec(),
            version_2(1, 0x11, &four),
            version_2(0, 0, &[]),
        ] {
            let end = bytes.len() - 4;
            for there in 1..=bytes.len() {
                match find_header(&bytes[..there]) {
                    Header::More(more) => assert!(there < end && more > there && more <= end, "{there} of {bytes:?}"),
                    found => assert_eq!((found, there >= end), (Header::Is(end), true), "{there} of {bytes:?}"),
                }
            }
        }
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        let huge = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff], &[0; 100]].concat();
        for none in [&b"PASS x\r\n"[..], b"\x16\x03\x01", b"\r\n\r\nx", b"", &long, &huge] {
            assert_eq!(find_header(none), Header::None, "{none:?}");
        }
    }

    #[test]
    fn invalid_headers_are_refused_with_the_reason() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        let huge = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff], &[0; 100]].concat();
        for (bytes, expected) in [
            (&b"\x02\x80\x02\x82pb banana"[..], "begin with a PROXY header"),
            (b"GET / HTTP/1.1\r\n", "begin with a PROXY header"),
            (b"PROXY", "ends within"),
            (b"PROXY TCP4 10.1.2.3", "ends within"),
            (b"PROXY TCP4 10.1.2.3 nonsense 1 2\r\n", "cannot be read"),
            (&long, "too long"),
            (&huge, "too long"),
            (&version_2(1, 0x11, &[1, 2, 3])[..19], "cannot be read"),
        ] {
            let error = read_all(bytes).0.unwrap_err();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }
}
