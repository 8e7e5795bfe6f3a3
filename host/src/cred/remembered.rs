//! Logins that outlive the connection where they began, such as a browser's, which has a token in a cookie.

use super::token::TokenDigest;

/// The stored data of a login that outlives its connection.
///
/// It is stored with its identity, as another credential. So it ends with the identity, and with the credential that it
/// began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The digest of the token that continues it.
    pub token: TokenDigest,
    /// The service at whose door it began. It is valid only there.
    pub service: String,
    /// The number of the credential that it began with.
    pub by: u64,
    /// It expires this many seconds after its last use.
    pub idle: u64,
    /// When it expires in any case, in seconds since 1970.
    pub until: u64,
}

impl Remembered {
    /// When it expires if it is used now.
    pub(super) fn expires(&self, now: u64) -> u64 {
        now.saturating_add(self.idle).min(self.until)
    }
}
