//! What a service and its clients may cost inside the library, as the operator has set it.

use std::time::Duration;

use super::frame;

/// The limits that a library enforces itself. The host sends them before it makes the service, and again when the operator changes
/// them.
///
/// ```
/// use plugin_api::abi::limits::ServiceLimits;
///
/// let limits = ServiceLimits { value: 4 << 20, ..ServiceLimits::default() };
/// assert_eq!(ServiceLimits::from_bytes(&limits.to_bytes()), limits);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// The largest saved state, in bytes.
    pub state: usize,
    /// How long calls may continue after their client has gone.
    pub orphans: Duration,
    /// How many such calls of one identity may continue.
    pub orphan_calls: usize,
    /// The longest key of the service's data, in bytes.
    pub key: usize,
    /// The largest value of the service's data, in bytes.
    pub value: usize,
    /// How many bytes of the service's data can change in one transaction.
    pub change: usize,
    /// How many bytes of copies of clients' objects are handed over in a reload.
    pub copies: usize,
    /// How many bytes of changes are kept for one connection's copies that nobody has asked for yet.
    pub changes: usize,
    /// How many bytes of output may wait for all clients of the service's doors. Beyond that, each client may have 16 KiB.
    pub unread: usize,
    /// How many bytes of an incomplete message one client of a door may have, if the door allows more.
    pub input: usize,
    /// How many bytes of output may wait for one client of a door, if the door allows more.
    pub output: usize,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            state: 64 << 20,
            orphans: Duration::from_secs(300),
            orphan_calls: 1024,
            key: 1 << 10,
            value: 1 << 20,
            change: 16 << 20,
            copies: 64 << 20,
            changes: 64 << 10,
            unread: 64 << 20,
            input: 64 << 20,
            output: 64 << 20,
        }
    }
}

impl ServiceLimits {
    /// The limits as a frame carries them: one number after the other, the time in milliseconds.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let Self { state, orphans, orphan_calls, key, value, change, copies, changes, unread, input, output } = self;
        let orphans = usize::try_from(orphans.as_millis()).unwrap_or(usize::MAX);
        let all = [state, orphans, orphan_calls, key, value, change, copies, changes, unread, input, output];
        all.into_iter().flat_map(|number| (number as u64).to_le_bytes()).collect()
    }

    /// The limits that a frame carries. What an older host does not send has its default; what a newer host sends beyond these is
    /// ignored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut numbers = frame::numbers(bytes);
        let mut next =
            |default: usize| numbers.next().map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX));
        let default = Self::default();
        let state = next(default.state);
        let orphans = next(usize::try_from(default.orphans.as_millis()).unwrap_or(usize::MAX));
        Self {
            state,
            orphans: Duration::from_millis(orphans as u64),
            orphan_calls: next(default.orphan_calls),
            key: next(default.key),
            value: next(default.value),
            change: next(default.change),
            copies: next(default.copies),
            changes: next(default.changes),
            unread: next(default.unread),
            input: next(default.input),
            output: next(default.output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_host_does_not_send_has_its_default() {
        let limits = ServiceLimits {
            state: 9,
            orphans: Duration::from_secs(1),
            orphan_calls: 2,
            key: 3,
            value: 4,
            change: 5,
            copies: 6,
            changes: 7,
            unread: 8,
            input: 10,
            output: 11,
        };
        let bytes = limits.to_bytes();
        for numbers in 0..=11 {
            let read = ServiceLimits::from_bytes(&bytes[..numbers * 8]);
            assert_eq!(read.to_bytes()[..numbers * 8], bytes[..numbers * 8]);
            assert_eq!(read.to_bytes()[numbers * 8..], ServiceLimits::default().to_bytes()[numbers * 8..]);
        }
        assert_eq!(ServiceLimits::from_bytes(&[bytes, vec![9; 8]].concat()), limits, "a newer host's is ignored");
    }
}
