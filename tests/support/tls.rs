//! TLS with a host, as a client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// TLS over a socket, with a host whose authority this is (PEM): it is asked for `name`, and offered these protocols.
///
/// # Panics
/// When the authority or the name is none.
pub fn client(authority: &[u8], name: &str, alpn: &[&str], socket: TcpStream) -> impl Read + Write + Send + 'static {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).expect("a certificate")).expect("it is one");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("ring has them").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let connection = ClientConnection::new(Arc::new(config), name.to_owned().try_into().expect("a name"));
    StreamOwned::new(connection.expect("it begins"), socket)
}
