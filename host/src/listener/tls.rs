//! TLS for doors: certificates from files, read anew when they change; and certificates of one's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, ServerConnection, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::fingerprint::Fingerprint;

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct TlsError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// A certificate and its key, from two files.
pub struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ServerConfig>,
    /// The same, for listeners whose clients are asked for a certificate.
    asking: Arc<ServerConfig>,
    current: Arc<Current>,
    /// What the files were when they were read last.
    stamps: Mutex<(Option<Fingerprint>, Option<Fingerprint>)>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// Clients may show a certificate, whoever has signed it: what counts is the key that it is for, and that they have the private
/// one, which their signature of the greeting shows.
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
        f.debug_struct("Certificates").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let wrong = |path: &Path, why: &dyn std::fmt::Display| TlsError { path: path.to_owned(), why: why.to_string() };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, &error))?;
    if chain.is_empty() {
        return Err(wrong(certificate, &"there is no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| wrong(key, &error))
}

/// Until when the certificate in this file is valid, in seconds since 1970.
///
/// # Errors
/// When it cannot be read.
pub fn until(certificate: &Path) -> Result<u64, TlsError> {
    use x509_cert::der::Decode;
    let wrong = |why: String| TlsError { path: certificate.to_owned(), why };
    let bytes = CertificateDer::from_pem_file(certificate).map_err(|error| wrong(error.to_string()))?;
    let parsed = x509_cert::Certificate::from_der(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(parsed.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

impl Certificates {
    /// Reads both files, in PEM.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let stamps = (Fingerprint::of(certificate), Fingerprint::of(key));
        let current = Arc::new(Current(RwLock::new(Arc::new(read(certificate, key)?))));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| TlsError { path: certificate.to_owned(), why: error.to_string() })
        };
        let config = builder()?.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as Arc<_>);
        let clients = Arc::new(AnyClient(provider.signature_verification_algorithms));
        let mut asking =
            builder()?.with_client_cert_verifier(clients).with_cert_resolver(Arc::clone(&current) as Arc<_>);
        // A session that could be resumed would be kept with the client's certificates, by whom nobody counts that.
        asking.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        asking.send_tls13_tickets = 0;
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            config: Arc::new(config),
            asking: Arc::new(asking),
            current,
            stamps: Mutex::new(stamps),
        }))
    }

    /// Reads the files again, if one of them has changed: who connects from now on gets the new certificate. True if
    /// there is a new one.
    ///
    /// # Errors
    /// When they cannot be used as they are now; the ones there were are kept then.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let stamps = (Fingerprint::of(&self.certificate), Fingerprint::of(&self.key));
        let mut known = self.stamps.lock();
        if *known == stamps {
            return Ok(false);
        }
        // Both are written one after the other: until they fit, the next look tries again.
        let new = read(&self.certificate, &self.key)?;
        *self.current.0.write() = Arc::new(new);
        *known = stamps;
        Ok(true)
    }

    /// What a connection of TLS is accepted with.
    /// `alpn`: the protocols that may be agreed on, the best first; none: nothing is agreed on. `asks`: clients are asked for a
    /// certificate, and need not have one.
    pub(crate) fn config_for(&self, alpn: &[String], asks: bool) -> Arc<ServerConfig> {
        if alpn.is_empty() && !asks {
            return Arc::clone(&self.config);
        }
        let mut config = ServerConfig::clone(if asks { &self.asking } else { &self.config });
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        Arc::new(config)
    }

    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.config))
    }
}

/// Certificates of one's own: those of an authority, and of a host that it vouches for. In PEM.
#[derive(Debug, Clone)]
pub struct Made {
    /// The authority's certificate: what clients are given.
    pub authority: String,
    /// The authority's key: to make the next certificate with.
    pub authority_key: zeroize::Zeroizing<String>,
    /// The host's certificate.
    pub certificate: String,
    /// The host's key.
    pub key: zeroize::Zeroizing<String>,
}

/// Why no certificate can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// No client could know a host by this.
    #[error("{0:?} is neither a name that DNS can have, such as \"this.host\", nor an address")]
    Name(String),
    /// The authority cannot be read, or it cannot be made.
    #[error(transparent)]
    Made(#[from] rcgen::Error),
}

/// How long a host's certificate is valid, in days.
const DAYS: i64 = 397;
/// How long an authority's is.
const AUTHORITY_DAYS: i64 = 3650;

/// Makes certificates for a host of these names and addresses. `authority`: the one to go on with, its certificate and
/// key in PEM; a new one, if there is none. `now` is in seconds since 1970.
///
/// # Errors
/// When a name is none, or the authority cannot be read.
pub fn make(names: &[String], authority: Option<(&str, &str)>, now: u64) -> Result<Made, MakeError> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    for name in names {
        // What no client asks for would be in a certificate that none takes.
        let plain = name.strip_prefix("*.").unwrap_or(name);
        rustls_pki_types::ServerName::try_from(plain).map_err(|_| MakeError::Name(name.clone()))?;
    }
    let day = |days: i64| {
        let seconds = now.cast_signed().saturating_add(days * 24 * 3600);
        // A clock that is that wrong makes certificates that are not valid.
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let (authority, authority_key) = match authority {
        Some((certificate, key)) => (certificate.to_owned(), KeyPair::from_pem(key)?),
        None => {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "credhost's own authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            (params.not_before, params.not_after) = (day(-1), day(AUTHORITY_DAYS));
            (params.self_signed(&key)?.pem(), key)
        }
    };
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name.push(DnType::CommonName, "credhost's own authority");
    issuer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = Issuer::from_params(&issuer, &authority_key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("credhost", String::as_str));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (day(-1), day(DAYS));
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Made {
        authority,
        authority_key: zeroize::Zeroizing::new(authority_key.serialize_pem()),
        certificate,
        key: zeroize::Zeroizing::new(key.serialize_pem()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_made_is_taken_and_half_a_pair_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = make(&names, None, 1_790_000_000).unwrap();
        fs::write(&certificate, &made.certificate).unwrap();
        fs::write(&key, &*made.key).unwrap();
        let loaded = Certificates::load(&certificate, &key).unwrap();
        assert!(!loaded.refresh().unwrap());
        let next = make(&names, Some((&made.authority, &made.authority_key)), 1_790_000_000).unwrap();
        assert_eq!(next.authority, made.authority);
        // A change within the clock's step must be seen, too.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        fs::write(&certificate, &next.certificate).unwrap();
        fs::File::options().append(true).open(&certificate).unwrap().set_modified(later).unwrap();
        assert!(loaded.refresh().is_err(), "the key is still the old one");
        fs::write(&key, &*next.key).unwrap();
        assert!(loaded.refresh().unwrap());
        fs::write(&certificate, "nonsense").unwrap();
        let error = Certificates::load(&certificate, &key).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
    }
}
