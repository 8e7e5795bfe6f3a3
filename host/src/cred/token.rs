//! Access tokens for programs, which store 256 random bits instead of a password.

use blake2::{Blake2s256, Digest};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The prefix of every token, by which people, and scanners for leaked secrets, recognize one.
const MARK: &str = "credhost_";

/// An access token in the clear. It is erased when dropped, and never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token(String);

/// The stored digest of a token. For 256 random bits, it is as good as a slow hash.
pub type TokenDigest = [u8; 32];

impl Token {
    /// Creates a token of these random bytes.
    #[must_use]
    pub fn new(random: &[u8; 32]) -> Self {
        Self(format!("{MARK}{}", data_encoding::BASE32_NOPAD.encode(random).to_ascii_lowercase()))
    }

    /// A token as received from a client. It may be invalid.
    #[must_use]
    pub fn received(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether a text has the form of a token. A password of this form would not be a good one.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        text.len() == MARK.len() + 52 && text.starts_with(MARK)
    }

    /// The text of the token, to be shown once to its owner.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The digest to store.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        Blake2s256::digest(self.0.as_bytes()).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_digest_and_never_shown() {
        let token = Token::new(&[7; 32]);
        assert!(token.reveal().starts_with("credhost_"));
        assert_eq!(token.reveal().len(), "credhost_".len() + 52);
        assert_eq!(token.digest(), Token::received(token.reveal()).digest());
        assert_ne!(token.digest(), Token::new(&[8; 32]).digest());
        assert_eq!(format!("{token:?}"), "Token");
    }
}
