//! SSH public keys, and their signatures.

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey as Ssh, Signature};

use super::error::CredentialError;

/// The prefix of everything that a client signs for a login here. So a signature made for another purpose is never
/// valid for a login, nor the other way round.
const PURPOSE: &[u8] = b"credhost login by key, version 1\0";

/// A public key, as in OpenSSH: Ed25519, ECDSA on P-256 or P-384, or RSA of 2048 to 4096 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(KeyData);

impl PublicKey {
    /// Reads one key from a file like `id_ed25519.pub`, and returns it with its comment. The file may also be a
    /// certificate in PEM, whose common name becomes the comment, or a public key in PEM. Blank lines and lines that
    /// begin with `#` are skipped.
    ///
    /// # Errors
    /// If the file has no key, more than one key, or something that would not be stored; or if the key is of an
    /// unsupported kind. The error names the line.
    pub fn parse(text: &str) -> Result<(Self, String), CredentialError> {
        let wrong = |why: &str| Err(CredentialError::Key(why.to_owned()));
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.contains("PRIVATE KEY") {
            return match text.contains("CERTIFICATE-----") {
                true => wrong("there is a private key beside the certificate; give only the certificate"),
                false => wrong("this is a private key; give the file that ends in .pub, or a certificate"),
            };
        }
        if text.contains("-----BEGIN TRUSTED CERTIFICATE-----") || text.contains("-----BEGIN X509 CERTIFICATE-----") {
            return wrong("this is OpenSSL's TRUSTED CERTIFICATE; `openssl x509 -in FILE` prints it in the usual form");
        }
        if text.contains("---- BEGIN SSH2 PUBLIC KEY") {
            return wrong("this key is in the format of RFC 4716; `ssh-keygen -i -f FILE` prints it in OpenSSH's");
        }
        if text.contains("-----BEGIN CERTIFICATE-----") || text.contains("-----BEGIN PUBLIC KEY-----") {
            return Self::of_pem(text);
        }
        if text.contains("-----BEGIN") {
            return wrong("this key is in PEM; `ssh-keygen -i -m PKCS8 -f FILE` prints it in OpenSSH's format");
        }
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let mut keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let Some((number, line)) = keys.next() else { return wrong("there is no key in it") };
        if let Some((second, _)) = keys.next() {
            return wrong(&format!("line {second} is a second key, after line {number}: give one key at a time"));
        }
        Self::of_line(line).map_err(|why| CredentialError::Key(format!("line {number}: {why}")))
    }

    /// Reads the key of a certificate, with the subject's common name, or a public key in OpenSSL's format.
    fn of_pem(text: &str) -> Result<(Self, String), CredentialError> {
        use rustls_pki_types::pem::PemObject;
        use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
        let wrong = |why: String| CredentialError::Key(why);
        let broken = |error| wrong(format!("this PEM cannot be read: {error}"));
        let sections = text.matches("-----BEGIN ").count();
        let lines = text.lines().filter(|line| line.starts_with("ssh-") || line.starts_with("ecdsa-")).count();
        if sections + lines > 1 {
            let all = sections + lines;
            return Err(wrong(format!("there are {all} keys or certificates in it: give only the client's own")));
        }
        let found: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(broken)?;
        match found.first() {
            Some(one) => {
                let certificate = super::ClientCertificate::read(one)?;
                Ok((certificate.key, certificate.name.unwrap_or_default()))
            }
            None => {
                let key = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map_err(broken)?;
                Ok((super::certificate::read_key(&key)?, String::new()))
            }
        }
    }

    fn of_line(line: &str) -> Result<(Self, String), String> {
        const KINDS: [&str; 4] = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ssh-rsa"];
        let (kind, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if kind.contains("-cert-v01@") {
            return Err("this is a certificate; give its key, which is in the file without -cert".to_owned());
        }
        if !KINDS.contains(&kind) {
            let options = line.split_whitespace().any(|field| KINDS.contains(&field));
            return Err(match options {
                true => format!("{kind:?} precedes the key: options are not stored; leave them out"),
                false => format!("keys of type {kind:?} are not supported: use Ed25519, ECDSA (P-256, P-384) or RSA"),
            });
        }
        let rest = rest.trim_start();
        let (blob, comment) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if blob.is_empty() {
            return Err(format!("there is no key after {kind}: was the line cut?"));
        }
        let column = line.len() - rest.len() + 1;
        let key = Ssh::from_openssh(&format!("{kind} {blob}"))
            .map_err(|_| format!("the text at column {column} is not a {kind} key: was it copied completely?"))?;
        let key = Self::accept(key.key_data().clone()).map_err(|error| error.to_string())?;
        Ok((key, comment.trim().to_owned()))
    }

    /// Reads the key's own bytes: the decoded part between kind and comment of a line (`Key.blob()` of Twisted's
    /// conch).
    ///
    /// # Errors
    /// If they are not a key, or one of an unsupported kind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CredentialError> {
        let key = Ssh::from_bytes(bytes).map_err(|error| CredentialError::Key(error.to_string()))?;
        Self::accept(key.key_data().clone())
    }

    pub(super) fn accept(key: KeyData) -> Result<Self, CredentialError> {
        match &key {
            KeyData::Ed25519(_) => Ok(Self(key)),
            KeyData::Ecdsa(curve) if curve.curve() != ssh_key::EcdsaCurve::NistP521 => Ok(Self(key)),
            // The first byte of a positive number may be a zero.
            KeyData::Rsa(rsa) if rsa.n.as_positive_bytes().is_some_and(|n| (256..=512).contains(&n.len())) => {
                Ok(Self(key))
            }
            // Signatures by larger keys cannot be checked.
            KeyData::Rsa(_) => Err(CredentialError::Key("an RSA key needs 2048 to 4096 bits".to_owned())),
            other => Err(CredentialError::Key(format!(
                "keys of type {} are not supported: use Ed25519, ECDSA (P-256, P-384) or RSA",
                other.algorithm()
            ))),
        }
    }

    /// The key in OpenSSH's format, without a comment.
    #[must_use]
    pub fn line(&self) -> String {
        // Formatting a parsed key cannot fail.
        Ssh::new(self.0.clone(), "").to_openssh().unwrap_or_default()
    }

    /// Its SHA-256 fingerprint, as `ssh-keygen -l` shows it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether `signature` is a signature of `message` by this key. It has SSH's wire format: the algorithm and the
    /// signature, each after its length (`Key.sign` of Twisted's conch). RSA with SHA-1 is refused.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        use signature::Verifier;
        Signature::try_from(signature).is_ok_and(|signature| self.0.verify(message, &signature).is_ok())
    }
}

/// The text that a client signs to log in by key: for this name, by this key, with these random bytes.
#[must_use]
pub fn to_be_signed(name: &str, key: &PublicKey, random: &[u8; 32]) -> Vec<u8> {
    let fingerprint = key.fingerprint();
    [PURPOSE, random, fingerprint.as_bytes(), b"\0", name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti user@example.com";

    #[test]
    fn a_line_is_read_and_written_as_openssh_does() {
        let (key, comment) = PublicKey::parse(ED25519).unwrap();
        assert_eq!(comment, "user@example.com");
        assert_eq!(key.line(), ED25519.rsplit_once(' ').unwrap().0);
        assert!(key.fingerprint().starts_with("SHA256:"));
    }

    #[test]
    fn a_key_is_read_however_its_line_was_written() {
        let (plain, _) = PublicKey::parse(ED25519).unwrap();
        let (kind, rest) = ED25519.split_once(' ').unwrap();
        let (blob, comment) = rest.split_once(' ').unwrap();
        for written in [
            format!("\u{feff}{ED25519}\r\n"),
            format!("{kind}\t{blob}\t{comment}"),
            format!("  {kind}   {blob}   {comment}  \n\n"),
            format!("# mine\n\n{ED25519}\n# no more\n"),
        ] {
            let (key, with) = PublicKey::parse(&written).unwrap();
            assert_eq!((key, with.as_str()), (plain.clone(), "user@example.com"), "{written:?}");
        }
        assert_eq!(PublicKey::parse(&format!("{kind} {blob}")).unwrap().1, "");
        assert_eq!(PublicKey::parse(&format!("{kind} {blob} my old laptop")).unwrap().1, "my old laptop");
    }

    #[test]
    fn text_that_cannot_be_kept_is_refused_with_its_line() {
        let rest = ED25519.split_once(' ').unwrap().1;
        for (text, says) in [
            (String::new(), "there is no key in it"),
            ("# nothing\n".to_owned(), "there is no key in it"),
            (format!("{ED25519}\n\n{ED25519}\n"), "line 3 is a second key, after line 1"),
            (format!("\nfrom=\"10.*\",no-pty {ED25519}"), "line 2: \"from=\\\"10.*\\\",no-pty\" precedes the key"),
            (format!("ssh-ed25519-cert-v01@openssh.com {rest}"), "line 1: this is a certificate"),
            (format!("ssh-dss {rest}"), "keys of type \"ssh-dss\" are not supported"),
            ("ssh-ed25519".to_owned(), "there is no key after ssh-ed25519"),
            ("ssh-ed25519  AAAAC3Nza cut".to_owned(), "the text at column 14 is not a ssh-ed25519 key"),
            ("---- BEGIN SSH2 PUBLIC KEY ----\n".to_owned(), "RFC 4716"),
            ("-----BEGIN PUBLIC KEY-----\n".to_owned(), "PEM cannot be read"),
            ("-----BEGIN DSA PUBLIC KEY-----\n".to_owned(), "in PEM"),
            ("hello".to_owned(), "keys of type \"hello\" are not supported"),
        ] {
            let error = PublicKey::parse(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn invalid_keys_and_signatures_are_refused() {
        assert!(PublicKey::parse("ssh-ed25519 nonsense").is_err());
        let private = PublicKey::parse("-----BEGIN OPENSSH PRIVATE KEY-----").unwrap_err().to_string();
        assert!(private.contains("private key"), "{private}");
        assert!(PublicKey::from_bytes(&[0, 0, 0, 200, 1]).is_err());
        let (key, _) = PublicKey::parse(ED25519).unwrap();
        for nonsense in [&b""[..], &[0, 0, 0, 11], &[0xff; 64]] {
            assert!(!key.verifies(b"message", nonsense));
        }
    }
}
