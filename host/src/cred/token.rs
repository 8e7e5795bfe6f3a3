//! Access tokens: for programs, which keep 256 random bits and no password.

use blake2::{Blake2s256, Digest};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What every token begins with, so that a person, and a scanner for leaked secrets, knows one.
const MARK: &str = "credhost_";

/// An access token in the clear: erased when dropped, never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token(String);

/// What is kept of a token: with 256 random bits, a digest is as good as a slow hash.
pub type TokenDigest = [u8; 32];

impl Token {
    /// A token of these random bytes.
    #[must_use]
    pub fn new(random: &[u8; 32]) -> Self {
        Self(format!("{MARK}{}", data_encoding::BASE32_NOPAD.encode(random).to_ascii_lowercase()))
    }

    /// A token as somebody sent it; it may be none.
    #[must_use]
    pub fn received(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether a text is one, by its looks: no password that is taken for one would stand long.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        text.len() == MARK.len() + 52 && text.starts_with(MARK)
    }

    /// To be shown once, to who asked for it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
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
