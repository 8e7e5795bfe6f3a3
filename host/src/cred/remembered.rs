//! Logins that outlive the connection that they came by: a browser's, which has a token in a cookie.

use super::token::TokenDigest;

/// What is kept of a login that outlives its connection.
///
/// It is kept with its identity, as one more credential: so it is gone when that is, and when the credential is that it began
/// with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The digest of the token that it goes on by.
    pub token: TokenDigest,
    /// The service by whose door it began: it goes on there alone.
    pub service: String,
    /// The number of the credential that it began with.
    pub by: u64,
    /// How long after it was used last it is over, in seconds.
    pub idle: u64,
    /// When it is over however much it is used, in seconds since 1970.
    pub until: u64,
}

impl Remembered {
    /// Until when it goes on if it is used now.
    pub(super) fn expires(&self, now: u64) -> u64 {
        now.saturating_add(self.idle).min(self.until)
    }
}
