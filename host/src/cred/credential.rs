//! Passwords, and how they are kept.
//!
//! A password is kept as an argon2id hash, and, for as long as the stock PB login is offered, as md5(password) sealed
//! under the master key: PB's proof is md5(md5(password) + challenge), which no better hash can check.

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::error::CredentialError;

/// OWASP's first recommendation for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// The longest password, in bytes.
const LONGEST: usize = 1024;

/// Random bytes for one password: made by the caller, for this module draws none.
#[derive(Clone)]
pub struct Entropy {
    /// For the hash.
    pub salt: [u8; 16],
    /// For the seal.
    pub nonce: [u8; 24],
}

/// A password in the clear, for as short as possible: erased when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// A password as a person typed it, brought into NFC.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.nfc().collect())
    }

    /// md5(password): what the stock PB login proves to know.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier(Zeroizing::new(Md5::digest(self.0.as_bytes()).into()))
    }

    /// The argon2id hash, as a PHC string. Takes tens of milliseconds, and 19 MiB.
    ///
    /// # Errors
    /// When the password is too long.
    pub fn hash(&self, salt: &[u8; 16]) -> Result<String, CredentialError> {
        if self.0.len() > LONGEST {
            return Err(CredentialError::TooLong(LONGEST));
        }
        let failed = |error: &dyn std::fmt::Display| CredentialError::Hash(error.to_string());
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|error| failed(&error))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash = argon2.hash_password_with_salt(self.0.as_bytes(), salt).map_err(|error| failed(&error))?;
        Ok(hash.to_string())
    }

    /// Whether this password has this hash. Takes as long as hashing it.
    #[must_use]
    pub fn matches(&self, hash: &str) -> bool {
        argon2::PasswordHash::new(hash)
            .is_ok_and(|hash| Argon2::default().verify_password(self.0.as_bytes(), &hash).is_ok())
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// What a new password must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordRules {
    /// The fewest characters.
    pub shortest: usize,
}

impl Default for PasswordRules {
    fn default() -> Self {
        Self { shortest: 15 }
    }
}

impl PasswordRules {
    /// Whether the password may be set.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check(&self, password: &Password) -> Result<(), CredentialError> {
        let characters = password.0.chars().count();
        if characters < self.shortest {
            return Err(CredentialError::TooShort(characters, self.shortest));
        }
        if password.0.len() > LONGEST {
            return Err(CredentialError::TooLong(LONGEST));
        }
        Ok(())
    }
}

/// md5(password). As good as the password itself to who speaks PB: kept sealed, erased when dropped, never shown.
#[derive(Clone)]
pub struct Verifier(Zeroizing<[u8; 16]>);

impl Verifier {
    /// Sealed for the store, bound to the identity's name: moved to another, it does not open.
    #[must_use]
    pub fn seal(&self, key: &MasterKey, name: &str, nonce: &[u8; 24]) -> Sealed {
        let payload = Payload { msg: self.0.as_slice(), aad: name.as_bytes() };
        // Encrypting sixteen bytes in memory cannot fail.
        let sealed = key.cipher().encrypt(&XNonce::from(*nonce), payload).unwrap_or_default();
        Sealed([nonce.as_slice(), &sealed].concat())
    }

    /// Whether `response` proves knowledge of the password. In constant time.
    #[must_use]
    pub fn proves(&self, challenge: &[u8], response: &[u8]) -> bool {
        let mut md5 = Md5::new();
        md5.update(self.0.as_slice());
        md5.update(challenge);
        let expected: [u8; 16] = md5.finalize().into();
        expected.ct_eq(response).into()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// A sealed [`Verifier`]: a nonce of 24 bytes, then XChaCha20-Poly1305 of md5(password).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl Sealed {
    /// Opens it.
    ///
    /// # Errors
    /// When it was sealed under another key or for another name, or was changed.
    pub fn open(&self, key: &MasterKey, name: &str) -> Result<Verifier, CredentialError> {
        let (nonce, sealed) = self.0.split_first_chunk::<24>().ok_or(CredentialError::Sealed)?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        let plain = key.cipher().decrypt(&XNonce::from(*nonce), payload).map_err(|_| CredentialError::Sealed)?;
        let plain = Zeroizing::new(plain);
        let md5: [u8; 16] = plain.as_slice().try_into().map_err(|_| CredentialError::Sealed)?;
        Ok(Verifier(Zeroizing::new(md5)))
    }
}

/// The key that verifiers are sealed under: `master.key`. Erased when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl MasterKey {
    /// A key of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

/// What a client answers to a challenge: md5(md5(password) + challenge). Source: `twisted.spread.pb.respond`.
#[must_use]
pub fn challenge_response(challenge: &[u8], password: &Password) -> [u8; 16] {
    let mut md5 = Md5::new();
    md5.update(password.verifier().0.as_slice());
    md5.update(challenge);
    md5.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the captures of Twisted 2.1.0 and 26.10.0: challenge and proof of alice, whose password is alice-pw.
    #[test]
    fn the_captured_proofs_verify() {
        for (challenge, response) in [
            ("26f5a031618cabc913b8fb0101c6b529", "09b9d0ccefd9d1ddb15e534ca11c8be6"),
            ("fae303f6fbe4b096769b39cfef9f4748", "26e3d6caebfdc4db0b91ae0a5ee255cd"),
        ] {
            let decode = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
            let verifier = Password::new("alice-pw").verifier();
            assert!(verifier.proves(&decode(challenge), &decode(response)));
            assert_eq!(challenge_response(&decode(challenge), &Password::new("alice-pw")).to_vec(), decode(response));
            assert!(!Password::new("alice-pq").verifier().proves(&decode(challenge), &decode(response)));
            assert!(!verifier.proves(&decode(challenge), b""));
        }
    }

    #[test]
    fn a_sealed_verifier_opens_for_its_key_and_name_alone() {
        let key = MasterKey::new([7; 32]);
        let sealed = Password::new("secret").verifier().seal(&key, "alice", &[9; 24]);
        assert!(sealed.open(&key, "alice").is_ok());
        assert!(sealed.open(&key, "bob").is_err());
        assert!(sealed.open(&MasterKey::new([8; 32]), "alice").is_err());
        let mut changed = sealed.clone();
        changed.0[30] ^= 1;
        assert!(changed.open(&key, "alice").is_err());
        assert!(Sealed(vec![1, 2, 3]).open(&key, "alice").is_err());
    }

    #[test]
    fn a_hash_is_argon2id_with_owasps_parameters() {
        let password = Password::new("correct horse battery");
        let hash = password.hash(&[1; 16]).unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(password.matches(&hash));
        assert!(!Password::new("wrong horse battery").matches(&hash));
        assert!(!password.matches("nonsense"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let password = Password::new("hunter2hunter2");
        let shown = format!("{password:?} {:?} {:?}", password.verifier(), MasterKey::new([1; 32]));
        assert_eq!(shown, "Password Verifier MasterKey");
    }
}
