//! The cost of hashing a password.

use argon2::Params;

use super::error::CredentialError;

/// The cost of hashing a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashCost {
    /// Memory, in KiB.
    pub memory: u32,
    /// Number of passes over this memory.
    pub passes: u32,
}

impl HashCost {
    /// OWASP's first recommendation for argon2id: 19 MiB, two passes, one lane. Lower costs are refused.
    pub const LEAST: Self = Self { memory: 19 * 1024, passes: 2 };

    pub(super) fn params(self) -> Result<Params, CredentialError> {
        Params::new(self.memory, self.passes, 1, None).map_err(|error| CredentialError::Hash(error.to_string()))
    }

    /// A hash that no password matches, but that takes as long to check.
    #[must_use]
    pub fn decoy(self, random: &[u8; 24]) -> String {
        self.written(&random[..16], &[&random[..], &random[..8]].concat())
    }

    /// Formats a hash as a PHC string.
    pub(super) fn written(self, salt: &[u8], output: &[u8]) -> String {
        let encode = |bytes: &[u8]| data_encoding::BASE64_NOPAD.encode(bytes);
        let (salt, output) = (encode(salt), encode(output));
        format!("$argon2id$v=19$m={},t={},p=1${salt}${output}", self.memory, self.passes)
    }
}

impl Default for HashCost {
    fn default() -> Self {
        Self::LEAST
    }
}
