//! A TLS client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::debian;

/// Starts TLS over a socket, as a client that trusts this authority (PEM), asks for the host `name`, and offers these protocols.
///
/// # Panics
/// When the authority is not PEM, or the name is not a host name.
pub fn client(authority: &[u8], name: &str, alpn: &[&str], socket: TcpStream) -> impl Read + Write + Send + 'static {
    with(authority, name, alpn, None, socket)
}

/// As [`client`], for the host `localhost` and without protocols, with the client certificate and the key from this file (PEM).
///
/// # Panics
/// When the authority is not PEM, or the file does not contain a certificate and a key.
pub fn certified(authority: &[u8], file: &Path, socket: TcpStream) -> impl Read + Write + Send + 'static {
    with(authority, "localhost", &[], Some(file), socket)
}

fn with(
    authority: &[u8],
    name: &str,
    alpn: &[&str],
    file: Option<&Path>,
    socket: TcpStream,
) -> StreamOwned<ClientConnection, TcpStream> {
    let config = config(authority, alpn, file);
    let connection = ClientConnection::new(Arc::new(config), name.to_owned().try_into().expect("a name"));
    StreamOwned::new(connection.expect("it begins"), socket)
}

/// Returns the configuration of a client that trusts this authority (PEM) and offers these protocols. With a file, the client
/// has the certificate and the key from it (PEM).
///
/// # Panics
/// When the authority is not PEM, or the file does not contain a certificate and a key.
#[must_use]
pub fn config(authority: &[u8], alpn: &[&str], file: Option<&Path>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).expect("a certificate")).expect("it is one");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("ring has them").with_root_certificates(roots);
    let mut config = match file {
        None => config.with_no_client_auth(),
        Some(file) => {
            let own = vec![CertificateDer::from_pem_file(file).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_file(file).expect("its key");
            let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key that can sign");
            // It is left to the server to find out whether they belong together.
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(own, key))))
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// Has OpenSSL make a certificate for this subject, with this kind of key. Returns the file with both, `FILE.pem` in this folder.
/// `FILE.crt` has the certificate alone, `FILE.key` the key.
///
/// # Panics
/// When OpenSSL fails.
#[must_use]
pub fn made(folder: &Path, file: &str, kind: &[&str], subject: &str) -> PathBuf {
    let path = |end: &str| folder.join(format!("{file}.{end}"));
    let mut openssl = Command::new(debian::program("openssl", "openssl"));
    openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", subject, "-newkey"]).args(kind);
    let (key, certificate) = (path("key"), path("crt"));
    let made = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).stderr(Stdio::null()).status();
    assert!(made.expect("openssl runs").success());
    let both = path("pem");
    let text = [&certificate, &key].map(|file| std::fs::read_to_string(file).expect("it was made")).concat();
    std::fs::write(&both, text).expect("it can be written");
    both
}

/// OpenSSL's arguments for a key on the curve P-256.
pub const P256: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
