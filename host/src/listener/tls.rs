//! TLS for doors: certificates from files, which are read again when they change; and a private authority.

mod make;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

pub use self::make::{Made, MakeError, make};
use crate::asked_name::name_fits;
use crate::fingerprint::Fingerprint;

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub why: String,
}

/// Two files in PEM: a certificate with its intermediate certificates, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The certificates for TLS: one, or several for different names.
pub struct Certificates {
    config: Arc<ServerConfig>,
    /// The same, for listeners that ask clients for a certificate.
    asking: Arc<ServerConfig>,
    all: Arc<ByName>,
}

/// The first is used if the client asks for no name, or if none of them matches.
#[derive(Debug)]
struct ByName(Vec<Pair>);

/// A certificate and its key, from two files.
#[derive(Debug)]
struct Pair {
    files: CertificateFiles,
    current: RwLock<Arc<Named>>,
    /// The fingerprints of the files when they were last read.
    stamps: Mutex<(Option<Fingerprint>, Option<Fingerprint>)>,
}

#[derive(Debug)]
struct Named {
    key: Arc<CertifiedKey>,
    /// The host names that the certificate is for. `*.example.org` stands for any one label in front.
    names: Vec<String>,
}

impl ByName {
    /// The certificate for this name: one with the name, or else one with a wildcard that matches, or else the first.
    fn find(&self, asked: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let fits = |named: &Named| {
            let asked = asked?;
            named.names.iter().filter_map(|name| name_fits(name, asked)).max()
        };
        let all = || self.0.iter().map(|pair| pair.current.read());
        // The first of those that fit equally well.
        let best =
            all().rev().filter_map(|named| Some((fits(&named)?, Arc::clone(&named.key)))).max_by_key(|(fit, _)| *fit);
        best.map(|(_, key)| key).or_else(|| all().next().map(|named| Arc::clone(&named.key)))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

/// Clients may present a certificate by any issuer. Only its key counts: the signature in the handshake proves that the
/// client has the private key.
#[derive(Debug)]
struct AnyClient(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.0.iter().map(|pair| &pair.files.certificate)).finish()
    }
}

fn read(files: &CertificateFiles) -> Result<Named, TlsError> {
    let CertificateFiles { certificate, key } = files;
    let wrong = |path: &Path, why: &dyn std::fmt::Display| TlsError { path: path.to_owned(), why: why.to_string() };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, &error))?;
    let Some(first) = chain.first() else {
        return Err(wrong(certificate, &"there is no certificate in it (-----BEGIN CERTIFICATE-----)"));
    };
    // Clients judge everything in it but its key.
    let names = x509_cert::Certificate::from_der(first).and_then(|parsed| names_in(&parsed)).unwrap_or_else(|error| {
        tracing::warn!("{}: its names cannot be read: {error}", certificate.display());
        Vec::new()
    });
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, private, &provider).map_err(|error| wrong(key, &error))?;
    Ok(Named { key: Arc::new(certified), names })
}

/// The host names that a certificate is for (RFC 5280, 4.2.1.6).
fn names_in(certificate: &x509_cert::Certificate) -> x509_cert::der::Result<Vec<String>> {
    let found = certificate.tbs_certificate().get_extension::<SubjectAltName>()?;
    let names = found.into_iter().flat_map(|(_, names)| names.0);
    let of_hosts = names.filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        _ => None,
    });
    Ok(of_hosts.collect())
}

/// The host names that the certificate in this file is for. Empty if it cannot be read.
#[must_use]
pub fn names(certificate: &Path) -> Vec<String> {
    let bytes = CertificateDer::from_pem_file(certificate).ok();
    let parsed = bytes.and_then(|bytes| x509_cert::Certificate::from_der(&bytes).ok());
    parsed.and_then(|parsed| names_in(&parsed).ok()).unwrap_or_default()
}

/// When the certificate in this file expires, in seconds since 1970.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn until(certificate: &Path) -> Result<u64, TlsError> {
    let wrong = |why: String| TlsError { path: certificate.to_owned(), why };
    let bytes = CertificateDer::from_pem_file(certificate).map_err(|error| wrong(error.to_string()))?;
    let parsed = x509_cert::Certificate::from_der(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(parsed.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

impl Certificates {
    /// Reads both files, in PEM.
    ///
    /// # Errors
    /// Returns an error if they cannot be read, or do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        Self::load_all(vec![CertificateFiles { certificate: certificate.to_owned(), key: key.to_owned() }])
    }

    /// Reads several certificates. A client gets the one for the name that it asks for; the first, if it asks for no
    /// name or none of them matches.
    ///
    /// # Errors
    /// Returns an error if some cannot be read, or do not belong together.
    pub fn load_all(files: Vec<CertificateFiles>) -> Result<Arc<Self>, TlsError> {
        let pair = |files: CertificateFiles| {
            let stamps = Mutex::new(files.stamps());
            Ok(Pair { current: RwLock::new(Arc::new(read(&files)?)), files, stamps })
        };
        let all = Arc::new(ByName(files.into_iter().map(pair).collect::<Result<_, _>>()?));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong = |error: rustls::Error| TlsError {
            path: all.0.first().map(|pair| pair.files.certificate.clone()).unwrap_or_default(),
            why: error.to_string(),
        };
        let builder = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(wrong)
        };
        let config = builder()?.with_no_client_auth().with_cert_resolver(Arc::clone(&all) as Arc<_>);
        let clients = Arc::new(AnyClient(provider.signature_verification_algorithms));
        let mut asking = builder()?.with_client_cert_verifier(clients).with_cert_resolver(Arc::clone(&all) as Arc<_>);
        // A resumable session would keep the client's certificates, in memory that is not counted.
        asking.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        asking.send_tls13_tickets = 0;
        Ok(Arc::new(Self { config: Arc::new(config), asking: Arc::new(asking), all }))
    }

    /// Reads changed files again; new connections get the new certificates. Returns how many certificates are new, and
    /// errors for those that cannot be used: the previous ones stay in use.
    pub fn refresh(&self) -> (usize, Vec<TlsError>) {
        let (mut new, mut wrong) = (0, Vec::new());
        for pair in &self.all.0 {
            match pair.refresh() {
                Ok(changed) => new += usize::from(changed),
                Err(error) => wrong.push(error),
            }
        }
        (new, wrong)
    }

    /// The TLS configuration for accepting connections. `alpn`: the protocols that may be agreed on, the best first;
    /// empty: none is agreed on. `asks`: clients are asked for a certificate, but need not have one.
    pub(crate) fn config_for(&self, alpn: &[String], asks: bool) -> Arc<ServerConfig> {
        if alpn.is_empty() && !asks {
            return Arc::clone(&self.config);
        }
        let mut config = ServerConfig::clone(if asks { &self.asking } else { &self.config });
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        Arc::new(config)
    }
}

impl CertificateFiles {
    fn stamps(&self) -> (Option<Fingerprint>, Option<Fingerprint>) {
        (Fingerprint::of(&self.certificate), Fingerprint::of(&self.key))
    }
}

impl Pair {
    fn refresh(&self) -> Result<bool, TlsError> {
        let stamps = self.files.stamps();
        let mut known = self.stamps.lock();
        if *known == stamps {
            return Ok(false);
        }
        // The two files are written one after the other. Until they fit, the next refresh tries again.
        let new = read(&self.files)?;
        *self.current.write() = Arc::new(new);
        *known = stamps;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_generated_pair_is_loaded_and_half_a_pair_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = make(&names, None, 1_790_000_000).unwrap();
        fs::write(&certificate, &made.certificate).unwrap();
        fs::write(&key, &*made.key).unwrap();
        let loaded = Certificates::load(&certificate, &key).unwrap();
        assert_eq!(loaded.refresh(), (0, vec![]));
        let next = make(&names, Some((&made.authority, &made.authority_key)), 1_790_000_000).unwrap();
        assert_eq!(next.authority, made.authority);
        // A change within the clock's resolution must be seen, too.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        fs::write(&certificate, &next.certificate).unwrap();
        fs::File::options().append(true).open(&certificate).unwrap().set_modified(later).unwrap();
        assert_eq!(loaded.refresh().1.len(), 1, "the key is still the old one");
        fs::write(&key, &*next.key).unwrap();
        assert_eq!(loaded.refresh(), (1, vec![]));
        fs::write(&certificate, "nonsense").unwrap();
        let error = Certificates::load(&certificate, &key).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
    }

    #[test]
    fn a_client_gets_the_certificate_for_the_name_that_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let made = |at: usize, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let made = make(&names, None, 1_790_000_000).unwrap();
            let (certificate, key) = (folder.path().join(format!("{at}.pem")), folder.path().join(format!("{at}.key")));
            fs::write(&certificate, made.certificate).unwrap();
            fs::write(&key, &*made.key).unwrap();
            CertificateFiles { certificate, key }
        };
        let all = vec![
            made(0, &["first.org", "127.0.0.1"]),
            made(1, &["*.example.org"]),
            made(2, &["chat.example.org", "www.example.org"]),
            made(3, &["chat.example.org", "*.example.org"]),
        ];
        let loaded = Certificates::load_all(all.clone()).unwrap();
        let first = |at: usize| CertificateDer::from_pem_file(&all[at].certificate).unwrap();
        for (asked, expected) in [
            (None, 0),
            (Some("first.org"), 0),
            (Some("elsewhere.org"), 0),
            (Some("a.example.org"), 1),
            (Some("A.Example.Org"), 1),
            (Some("a.b.example.org"), 0),
            (Some("example.org"), 0),
            (Some("chat.example.org"), 2),
            (Some("WWW.example.org"), 2),
        ] {
            let found = loaded.all.find(asked).unwrap();
            assert_eq!(found.cert.first(), Some(&first(expected)), "{asked:?}");
        }
        // One that can no longer be used does not prevent the renewal of others.
        fs::write(&all[1].certificate, "nonsense").unwrap();
        let renewed = made(2, &["new.example.org"]);
        let (new, wrong) = loaded.refresh();
        assert_eq!((new, wrong.len(), renewed), (1, 1, all[2].clone()));
        assert_eq!(loaded.all.find(Some("new.example.org")).unwrap().cert.first(), Some(&first(2)));
    }
}
