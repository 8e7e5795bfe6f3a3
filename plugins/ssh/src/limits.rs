//! What one connection may have, as the operator has set it in `[service.ssh]`.

use plugin_api::{Fault, Result};
use serde::Deserialize;

/// What one connection may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Channels at once (OpenSSH's `MaxSessions`).
    pub(crate) channels: usize,
    /// The letters of a line that is typed.
    pub(crate) line: usize,
    /// Bytes typed ahead that wait; more are not taken.
    pub(crate) typed: usize,
    /// Bytes of commands by pipes that wait, of all channels; more of them end the session. SSH's window cannot hold a client back
    /// here: russh gives it out again as it reads, and has to read, for channels have one way between them.
    pub(crate) piped: usize,
    /// Calls by services that wait to be shown. More of them are counted.
    pub(crate) shown: usize,
    /// Bytes of these.
    pub(crate) shown_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { channels: 10, line: 4 << 10, typed: 64 << 10, piped: 8 << 20, shown: 256, shown_bytes: 1 << 20 }
    }
}

impl Limits {
    /// The same, if they can be.
    ///
    /// # Errors
    /// The first that cannot.
    pub(crate) fn checked(self) -> Result<Self> {
        let all = [
            ("channels", self.channels, 1, 1_000),
            ("line", self.line, 80, 1 << 20),
            ("typed", self.typed, 1 << 10, 1 << 30),
            ("piped", self.piped, 1 << 10, 1 << 30),
            ("shown", self.shown, 1, 1_000_000),
            ("shown_bytes", self.shown_bytes, 1 << 10, 1 << 30),
        ];
        match all.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value)) {
            None => Ok(self),
            Some((name, value, least, most)) => {
                Err(Fault::value(format!("[service.ssh] {name} is {value}: it may be from {least} to {most}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_least_and_a_most() {
        assert_eq!(Limits::default().checked(), Ok(Limits::default()));
        let none = Limits { channels: 0, ..Limits::default() };
        assert_eq!(none.checked().unwrap_err().message(), "[service.ssh] channels is 0: it may be from 1 to 1000");
        assert!(Limits { shown_bytes: 2 << 30, ..Limits::default() }.checked().is_err());
    }
}
