//! The limits of one connection, as the operator has set them in `[service.ssh]`.

use plugin_api::{Fault, Result};
use serde::Deserialize;

/// The limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Channels at once (OpenSSH's `MaxSessions`).
    pub(crate) channels: usize,
    /// The letters of a typed line.
    pub(crate) line: usize,
    /// Bytes of type-ahead that may wait; more are not accepted.
    pub(crate) typed: usize,
    /// The bytes of a piped line.
    pub(crate) piped_line: usize,
    /// Bytes of piped commands that may wait, of all channels; more of them end the session. SSH's window cannot slow a client
    /// down here: russh extends it as it reads, and must read, because all channels share one connection.
    pub(crate) piped: usize,
    /// Calls by services that may wait to be shown. More of them are only counted.
    pub(crate) shown: usize,
    /// The bytes of these calls.
    pub(crate) shown_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            channels: 10,
            line: 4 << 10,
            typed: 64 << 10,
            piped_line: 64 << 10,
            piped: 8 << 20,
            shown: 256,
            shown_bytes: 1 << 20,
        }
    }
}

impl Limits {
    /// Returns the limits, if they are valid.
    ///
    /// # Errors
    /// If a limit is out of range. The error names the first one.
    pub(crate) fn checked(self) -> Result<Self> {
        let all = [
            ("channels", self.channels, 1, 1_000),
            ("line", self.line, 80, 1 << 20),
            ("typed", self.typed, 1 << 10, 1 << 30),
            ("piped_line", self.piped_line, 80, 1 << 24),
            ("piped", self.piped, 1 << 10, 1 << 30),
            ("shown", self.shown, 1, 1_000_000),
            ("shown_bytes", self.shown_bytes, 1 << 10, 1 << 30),
        ];
        if self.piped_line > self.piped {
            let (line, all) = (self.piped_line, self.piped);
            return Err(Fault::value(format!("[service.ssh] piped_line is {line}, more than piped, which is {all}")));
        }
        match all.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value)) {
            None => Ok(self),
            Some((name, value, least, most)) => {
                Err(Fault::value(format!("[service.ssh] {name} is {value}: the range is {least} to {most}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_minimum_and_a_maximum() {
        assert_eq!(Limits::default().checked(), Ok(Limits::default()));
        let none = Limits { channels: 0, ..Limits::default() };
        assert_eq!(none.checked().unwrap_err().message(), "[service.ssh] channels is 0: the range is 1 to 1000");
        assert!(Limits { shown_bytes: 2 << 30, ..Limits::default() }.checked().is_err());
    }
}
