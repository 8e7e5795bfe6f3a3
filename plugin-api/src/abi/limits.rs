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
    /// How many bytes of output may wait for all clients of the service's doors.
    pub unread: usize,
    /// How many bytes of output may wait for each of these clients when more waits for all than `unread`.
    pub each: usize,
    /// How many bytes of an incomplete message one client of a door may have, if the door allows more.
    pub input: usize,
    /// How many bytes of output may wait for one client of a door, if the door allows more.
    pub output: usize,
    /// HTTP: how long a client may take for a request's head, and how long it may send no request. Proxies keep connections open for
    /// less long, so none is closed while a request is on its way.
    pub http_idle: Duration,
    /// HTTP: how long a request may take, with its body.
    pub http_request: Duration,
    /// HTTP: the longest head of a request, in bytes.
    pub http_head: usize,
    /// HTTP: how many requests of one visitor by a proxy are answered at once. All visitors come by the proxy's few connections.
    pub http_at_once: usize,
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
            each: 16 << 10,
            input: 64 << 20,
            output: 64 << 20,
            http_idle: Duration::from_secs(75),
            http_request: Duration::from_secs(60),
            http_head: 64 << 10,
            http_at_once: 32,
        }
    }
}

impl ServiceLimits {
    /// The limits as a frame carries them: one number after the other, times in milliseconds.
    #[must_use]
    pub fn to_bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in self.fields() {
            let number = match field {
                Field::Number(number) => *number as u64,
                Field::Time(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            };
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The limits that a frame carries. What an older host does not send has its default; what a newer host sends beyond these is
    /// ignored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut limits = Self::default();
        for (field, number) in limits.fields().into_iter().zip(frame::numbers(bytes)) {
            match field {
                Field::Number(field) => *field = usize::try_from(number).unwrap_or(usize::MAX),
                Field::Time(field) => *field = Duration::from_millis(number),
            }
        }
        limits
    }

    /// All of them, in the order of the frame: append what is new.
    fn fields(&mut self) -> [Field<'_>; 16] {
        [
            Field::Number(&mut self.state),
            Field::Time(&mut self.orphans),
            Field::Number(&mut self.orphan_calls),
            Field::Number(&mut self.key),
            Field::Number(&mut self.value),
            Field::Number(&mut self.change),
            Field::Number(&mut self.copies),
            Field::Number(&mut self.changes),
            Field::Number(&mut self.unread),
            Field::Number(&mut self.input),
            Field::Number(&mut self.output),
            Field::Time(&mut self.http_idle),
            Field::Time(&mut self.http_request),
            Field::Number(&mut self.http_head),
            Field::Number(&mut self.http_at_once),
            Field::Number(&mut self.each),
        ]
    }
}

/// One limit, as a frame carries it.
enum Field<'l> {
    Number(&'l mut usize),
    Time(&'l mut Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_an_older_host_does_not_send_have_their_default() {
        let mut limits = ServiceLimits::default();
        for (number, field) in limits.fields().into_iter().enumerate() {
            match field {
                Field::Number(field) => *field = number,
                Field::Time(field) => *field = Duration::from_millis(number as u64),
            }
        }
        let (bytes, default) = (limits.to_bytes(), ServiceLimits::default().to_bytes());
        assert_eq!(frame::numbers(&bytes).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>(), "each is its own");
        for known in 0..=16 {
            let read = ServiceLimits::from_bytes(&bytes[..known * 8]);
            assert_eq!(read.to_bytes(), [&bytes[..known * 8], &default[known * 8..]].concat());
        }
        assert_eq!(ServiceLimits::from_bytes(&[bytes, vec![9; 8]].concat()), limits, "a newer host's is ignored");
    }
}
