//! Stored verifiers for the stock PB login, and the key that they are sealed under.
//!
//! PB's proof is md5(md5(password) + challenge). No better hash can check it: the host needs md5(password). It stores
//! this sealed with XChaCha20-Poly1305 under `master.key`, bound to the identity's name.

use std::sync::Arc;

use blake2::Blake2sMac256;
use blake2::digest::Mac;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use md5::{Digest, Md5};
use parking_lot::RwLock;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::CredentialError;

/// md5(password). For a PB client it is as good as the password itself, so it is stored sealed, erased when dropped,
/// and never shown.
#[derive(Clone)]
pub struct Verifier(Zeroizing<[u8; 16]>);

impl Verifier {
    pub(super) fn of(password: &str) -> Self {
        Self(Zeroizing::new(Md5::digest(password.as_bytes()).into()))
    }

    /// Seals it for the store, bound to the identity's name. Under another name, it cannot be opened.
    #[must_use]
    pub fn seal(&self, key: &MasterKey, name: &str, nonce: &[u8; 24]) -> Sealed {
        key.seal(self.0.as_slice(), name.as_bytes(), nonce)
    }

    /// Whether `response` proves knowledge of the password. Takes constant time.
    #[must_use]
    pub fn proves(&self, challenge: &[u8], response: &[u8]) -> bool {
        self.response(challenge).ct_eq(response).into()
    }

    pub(super) fn response(&self, challenge: &[u8]) -> [u8; 16] {
        let mut md5 = Md5::new();
        md5.update(self.0.as_slice());
        md5.update(challenge);
        md5.finalize().into()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// Sealed bytes: a nonce of 24 bytes, then the output of XChaCha20-Poly1305.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl Sealed {
    /// Opens a sealed [`Verifier`].
    ///
    /// # Errors
    /// If it was sealed under another key or for another name, or was changed.
    pub fn open(&self, key: &MasterKey, name: &str) -> Result<Verifier, CredentialError> {
        let plain = key.unseal(self, name.as_bytes())?;
        let md5: [u8; 16] = plain.as_slice().try_into().map_err(|_| CredentialError::Sealed)?;
        Ok(Verifier(Zeroizing::new(md5)))
    }

    /// Opens it, and seals it again under the newest part of the key.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn reseal(&self, key: &MasterKey, name: &str, nonce: &[u8; 24]) -> Result<Self, CredentialError> {
        let plain = key.unseal(self, name.as_bytes())?;
        Ok(key.seal(&plain, name.as_bytes(), nonce))
    }
}

/// The key that verifiers are sealed under: `master.key`. It is erased when dropped, and never shown. Clones share the
/// same key.
///
/// While it is being replaced, it has several parts. The newest one seals, and any of them opens.
#[derive(Clone)]
pub struct MasterKey(Arc<RwLock<Vec<Zeroizing<[u8; 32]>>>>);

impl MasterKey {
    /// Creates a key of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self::of_parts(vec![Zeroizing::new(bytes)])
    }

    /// Creates a key that is being replaced, from its parts, the newest first.
    #[must_use]
    pub fn of_parts(parts: Vec<Zeroizing<[u8; 32]>>) -> Self {
        Self(Arc::new(RwLock::new(parts)))
    }

    /// The number of its parts: one, unless it is being replaced.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.0.read().len()
    }

    /// The bytes that it will have after adding a new part.
    #[must_use]
    pub fn bytes_with(&self, new: &[u8; 32]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([new.as_slice(), &self.bytes()].concat())
    }

    /// The bytes of its newest part.
    #[must_use]
    pub fn newest(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = self.bytes();
        bytes.truncate(32);
        bytes
    }

    /// Adds a new part before the existing ones.
    pub fn replace_by(&self, bytes: [u8; 32]) {
        self.0.write().insert(0, Zeroizing::new(bytes));
    }

    /// Removes all parts but the newest, once nothing is sealed under them any more.
    pub fn forget_old(&self) {
        self.0.write().truncate(1);
    }

    /// The bytes of all parts, the newest first: the content of `master.key`.
    #[must_use]
    pub fn bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.read().iter().flat_map(|part| *part.as_slice().as_array().unwrap_or(&[0; 32])).collect())
    }

    /// Seals bytes for a purpose. The purpose is not secret.
    #[must_use]
    pub fn seal(&self, plain: &[u8], purpose: &[u8], nonce: &[u8; 24]) -> Sealed {
        let payload = Payload { msg: plain, aad: purpose };
        let parts = self.0.read();
        let cipher = parts.first().map(|part| XChaCha20Poly1305::new((&**part).into()));
        // Encrypting a few bytes in memory cannot fail.
        let sealed = cipher.and_then(|cipher| cipher.encrypt(&XNonce::from(*nonce), payload).ok()).unwrap_or_default();
        Sealed([nonce.as_slice(), &sealed].concat())
    }

    /// Opens bytes that were sealed for this purpose.
    ///
    /// # Errors
    /// If they were sealed under another key or for another purpose, or were changed.
    pub fn unseal(&self, sealed: &Sealed, purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
        let (nonce, sealed) = sealed.0.split_first_chunk::<24>().ok_or(CredentialError::Sealed)?;
        let parts = self.0.read();
        let open = |part: &Zeroizing<[u8; 32]>| {
            let payload = Payload { msg: sealed, aad: purpose };
            XChaCha20Poly1305::new((&**part).into()).decrypt(&XNonce::from(*nonce), payload).ok()
        };
        parts.iter().find_map(open).map(Zeroizing::new).ok_or(CredentialError::Sealed)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

/// The store's own secret, from which other keys are derived: for the audit trail's chain, and for names that must not
/// be stored in the clear. It is erased when dropped, and never shown.
#[derive(Clone)]
pub struct StoreSecret(Zeroizing<[u8; 32]>);

impl StoreSecret {
    /// Creates a secret of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, for sealing.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.to_vec())
    }

    /// Computes a keyed digest (BLAKE2s) for a purpose.
    #[must_use]
    pub fn digest(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = <Blake2sMac256 as blake2::digest::KeyInit>::new((&*self.0).into());
        // Each part follows its length, so that different lists of parts never give the same bytes.
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for StoreSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cred::{Password, challenge_response};

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
    fn while_a_key_is_replaced_both_open_and_the_new_one_seals() {
        let key = MasterKey::new([7; 32]);
        let old = Password::new("secret").verifier().seal(&key, "alice", &[9; 24]);
        key.replace_by([8; 32]);
        assert!(old.open(&key, "alice").is_ok());
        let new = old.reseal(&key, "alice", &[10; 24]).unwrap();
        key.forget_old();
        assert!(new.open(&key, "alice").is_ok());
        assert!(old.open(&key, "alice").is_err());
        assert_eq!(key.bytes().as_slice(), [8; 32]);
    }

    #[test]
    fn digests_of_different_parts_differ() {
        let secret = StoreSecret::new([1; 32]);
        assert_ne!(secret.digest("a", &[b"bc"]), secret.digest("ab", &[b"c"]));
        assert_ne!(secret.digest("a", &[b"b", b"c"]), secret.digest("a", &[b"bc"]));
        assert_eq!(format!("{secret:?} {:?}", MasterKey::new([1; 32])), "StoreSecret MasterKey");
    }
}
