//! Client certificates. Only a certificate's public key counts: the identity must have it. The issuer and the dates are
//! not checked. TLS checks that the client has the private key (RFC 8446, 4.4.3).

use ssh_key::Mpint;
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey};
use x509_cert::Certificate as X509;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::error::CredentialError;
use super::public_key::PublicKey;

/// Ed25519 (RFC 8410).
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// A key on an elliptic curve (RFC 5480). The curve is its parameter.
const ELLIPTIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// P-256 and P-384.
const CURVES: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"), ObjectIdentifier::new_unwrap("1.3.132.0.34")];
/// RSA (RFC 8017).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A certificate that a client has presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate's public key.
    pub key: PublicKey,
    /// The subject's common name, if it has one that is text.
    pub name: Option<String>,
}

fn wrong(why: impl std::fmt::Display) -> CredentialError {
    CredentialError::Key(format!("this is not a readable certificate: {why}"))
}

impl ClientCertificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// If these bytes are not a certificate, or its key is of an unsupported kind.
    pub fn read(der: &[u8]) -> Result<Self, CredentialError> {
        let certificate = X509::from_der(der).map_err(wrong)?;
        let of = certificate.tbs_certificate();
        let key = key(of.subject_public_key_info())?;
        let name = of.subject().common_name().ok().flatten().map(|name| name.value().into_owned());
        Ok(Self { key, name: name.filter(|name| !name.is_empty()) })
    }
}

/// Reads a key in DER, as SubjectPublicKeyInfo (RFC 5280). OpenSSL calls this a public key.
///
/// # Errors
/// If this is not a public key, or one of an unsupported kind.
pub(super) fn read_key(der: &[u8]) -> Result<PublicKey, CredentialError> {
    let unreadable = |why| CredentialError::Key(format!("this is not a readable public key: {why}"));
    key(&SubjectPublicKeyInfoOwned::from_der(der).map_err(unreadable)?)
}

fn key(info: &SubjectPublicKeyInfoOwned) -> Result<PublicKey, CredentialError> {
    let bytes = info.subject_public_key.as_bytes().ok_or_else(|| wrong("its key is not a whole number of bytes"))?;
    let data = match info.algorithm.oid {
        ED25519 => KeyData::Ed25519(Ed25519PublicKey::try_from(bytes).map_err(wrong)?),
        ELLIPTIC => {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
            if !curve.is_some_and(|curve| CURVES.contains(&curve)) {
                return Err(wrong("its key's curve is not supported; use P-256 or P-384"));
            }
            KeyData::Ecdsa(EcdsaPublicKey::from_sec1_bytes(bytes).map_err(wrong)?)
        }
        RSA => KeyData::Rsa(rsa(bytes)?),
        other => {
            return Err(wrong(format!("its key is of the kind {other}; use Ed25519, ECDSA (P-256, P-384) or RSA")));
        }
    };
    PublicKey::accept(data)
}

/// Reads `RSAPublicKey`: the modulus and the exponent (RFC 8017, A.1.1).
fn rsa(der: &[u8]) -> Result<RsaPublicKey, CredentialError> {
    fn both<'a>(reader: &mut SliceReader<'a>) -> Result<(UintRef<'a>, UintRef<'a>), x509_cert::der::Error> {
        Ok((UintRef::decode(reader)?, UintRef::decode(reader)?))
    }
    let number = |number: UintRef<'_>| Mpint::from_positive_bytes(number.as_bytes()).map_err(wrong);
    let (n, e) = SliceReader::new(der).and_then(|mut reader| reader.sequence(both)).map_err(wrong)?;
    Ok(RsaPublicKey { n: number(n)?, e: number(e)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn made(kind: &'static rcgen::SignatureAlgorithm, name: Option<&str>) -> (KeyPair, rcgen::Certificate) {
        let key = KeyPair::generate_for(kind).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let certificate = params.self_signed(&key).unwrap();
        (key, certificate)
    }

    #[test]
    fn a_certificates_key_equals_its_openssh_form() {
        for (kind, begins) in [
            (&rcgen::PKCS_ED25519, "ssh-ed25519 "),
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ecdsa-sha2-nistp256 "),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ecdsa-sha2-nistp384 "),
        ] {
            let (key, certificate) = made(kind, Some("alice"));
            let read = ClientCertificate::read(certificate.der()).unwrap();
            assert_eq!(read.name.as_deref(), Some("alice"));
            assert!(read.key.line().starts_with(begins), "{}", read.key.line());
            // Each form of the key gives the same key.
            let (of_pem, comment) = PublicKey::parse(&certificate.pem()).unwrap();
            assert_eq!((&of_pem, comment.as_str()), (&read.key, "alice"));
            assert_eq!(PublicKey::parse(&key.public_key_pem()).unwrap(), (read.key.clone(), String::new()));
            assert_eq!(PublicKey::parse(&read.key.line()).unwrap().0, read.key);
        }
    }

    #[test]
    fn a_certificate_from_openssl_is_read() {
        // openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=rosa
        let (key, comment) = PublicKey::parse(include_str!("rosa.pem")).unwrap();
        assert_eq!(comment, "rosa");
        assert_eq!(key.fingerprint(), "SHA256:14EBk9BhvtyRoi3IQnCRRihu+jv25rUsJPIJfVseSU0");
    }

    #[test]
    fn invalid_certificates_are_refused_with_the_reason() {
        for (text, says) in [
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a readable certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA", "PEM cannot be read"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a readable public key"),
            ("-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n", "in PEM"),
            ("-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n", "openssl x509 -in"),
            (
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n",
                "only the certificate",
            ),
        ] {
            let said = PublicKey::parse(text).unwrap_err().to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
        let (_, one) = made(&rcgen::PKCS_ED25519, None);
        assert_eq!(ClientCertificate::read(one.der()).unwrap().name, None);
        let (key, _) = made(&rcgen::PKCS_ED25519, None);
        let (one, other) = (one.pem(), key.public_key_pem());
        let line = PublicKey::parse(&other).unwrap().0.line();
        for two in [[&one, &one], [&one, &other], [&other, &other], [&one, &line], [&line, &other]] {
            let said = PublicKey::parse(&two.map(String::as_str).join("\n")).unwrap_err().to_string();
            assert!(said.contains("2 keys or certificates"), "{said}");
        }
        // The text that OpenSSL writes before a certificate is ignored.
        PublicKey::parse(&format!("Certificate:\n    Data:\n{one}")).unwrap();
    }

    proptest! {
        /// Any bytes from a client are either read or refused.
        #[test]
        fn any_certificate_bytes_are_read_or_refused(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let (_, certificate) = made(&rcgen::PKCS_ED25519, Some("alice"));
            let mut der = certificate.der().to_vec();
            let at = at.index(der.len());
            der[at] = byte;
            der.truncate(cut.index(der.len()) + 1);
            drop(ClientCertificate::read(&der));
        }
    }
}
