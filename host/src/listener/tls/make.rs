//! Creates certificates.

/// New certificates, of an authority and of a host that it vouches for. In PEM.
#[derive(Debug, Clone)]
pub struct Made {
    /// The authority's certificate, to be given to clients.
    pub authority: String,
    /// The authority's key, to make the next certificate with.
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
    /// No client could verify a host by this name.
    #[error("{0:?} is neither a DNS name, such as \"this.host\", nor an address")]
    Name(String),
    /// The authority cannot be read, or a certificate cannot be created.
    #[error(transparent)]
    Made(#[from] rcgen::Error),
}

/// How long a host's certificate is valid, in days.
const DAYS: i64 = 397;
/// How long an authority's certificate is valid, in days.
const AUTHORITY_DAYS: i64 = 3650;

/// Creates certificates for a host with these names and addresses. `authority`: the certificate and key of an existing
/// authority, in PEM; without it, a new one is created. `now` is in seconds since 1970.
///
/// # Errors
/// Returns an error if a name is invalid, or the authority cannot be read.
pub fn make(names: &[String], authority: Option<(&str, &str)>, now: u64) -> Result<Made, MakeError> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    for name in names {
        // With a name that no client asks for, no client would accept the certificate.
        let plain = name.strip_prefix("*.").unwrap_or(name);
        rustls_pki_types::ServerName::try_from(plain).map_err(|_| MakeError::Name(name.clone()))?;
    }
    let day = |days: i64| {
        let seconds = now.cast_signed().saturating_add(days * 24 * 3600);
        // With a clock that is this wrong, the certificates are not valid.
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
