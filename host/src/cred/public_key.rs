//! SSH public keys, and signatures by them.

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey as Ssh, Signature};

use super::error::CredentialError;

/// What stands before everything that a client signs here, so that a signature for something else is never one for a
/// login, nor the other way round.
const PURPOSE: &[u8] = b"credhost login by key, version 1\0";

/// A public key, as OpenSSH has it: Ed25519, ECDSA on P-256 or P-384, or RSA of 2048 to 4096 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(KeyData);

impl PublicKey {
    /// Reads a line as in `id_ed25519.pub` or `authorized_keys`; answers with the comment, too.
    ///
    /// # Errors
    /// When it is no such line, or a kind of key that is not taken.
    pub fn parse(line: &str) -> Result<(Self, String), CredentialError> {
        let line = line.trim();
        if line.contains("PRIVATE KEY") {
            return Err(CredentialError::Key("this is a private key; give the file that ends in .pub".to_owned()));
        }
        let key = Ssh::from_openssh(line).map_err(|error| CredentialError::Key(error.to_string()))?;
        Ok((Self::accept(key.key_data().clone())?, key.comment().to_owned()))
    }

    /// Reads the key's own bytes: what stands between kind and comment of a line, decoded (`Key.blob()` of Twisted's
    /// conch).
    ///
    /// # Errors
    /// When they are none, or a kind of key that is not taken.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CredentialError> {
        let key = Ssh::from_bytes(bytes).map_err(|error| CredentialError::Key(error.to_string()))?;
        Self::accept(key.key_data().clone())
    }

    fn accept(key: KeyData) -> Result<Self, CredentialError> {
        match &key {
            KeyData::Ed25519(_) => Ok(Self(key)),
            KeyData::Ecdsa(curve) if curve.curve() != ssh_key::EcdsaCurve::NistP521 => Ok(Self(key)),
            // The first byte of a positive number may be a zero.
            KeyData::Rsa(rsa) if rsa.n.as_positive_bytes().is_some_and(|n| (256..=512).contains(&n.len())) => {
                Ok(Self(key))
            }
            // No signature by a larger one could be checked.
            KeyData::Rsa(_) => Err(CredentialError::Key("an RSA key needs 2048 to 4096 bits".to_owned())),
            other => Err(CredentialError::Key(format!(
                "keys of the kind {} are not taken: use Ed25519, ECDSA (P-256, P-384) or RSA",
                other.algorithm()
            ))),
        }
    }

    /// As OpenSSH writes it, without a comment.
    #[must_use]
    pub fn line(&self) -> String {
        // Writing what was read cannot fail.
        Ssh::new(self.0.clone(), "").to_openssh().unwrap_or_default()
    }

    /// Its SHA-256 fingerprint, as `ssh-keygen -l` shows it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether `signature` is one of `message` by this key. `signature` is as on SSH's wire: the algorithm and the
    /// signature, each behind its length (`Key.sign` of Twisted's conch). RSA with SHA-1 is not taken.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        use signature::Verifier;
        Signature::try_from(signature).is_ok_and(|signature| self.0.verify(message, &signature).is_ok())
    }
}

/// What a client signs to log in by key: for this name, by this key, with these random bytes.
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
    fn what_is_no_key_is_said() {
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
