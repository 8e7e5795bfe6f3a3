//! The minimum rate of a transfer that has begun. Reads no clock.
//!
//! After the idea of Apache's `mod_reqtimeout`: a client that sends a byte now and then is disconnected; one that sends much and
//! needs long for it is not.

use std::time::Duration;

use tokio::time::Instant;

/// How fast a stream must move: the operator's settings in `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// How long to wait for a client that reads too slowly, while output waits for it.
    pub stalled: Duration,
    /// The time within which a message that has begun must be complete, or must have progressed at the rate.
    pub message: Duration,
    /// The rate, in bytes a second.
    pub rate: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self { stalled: Duration::from_secs(30), message: Duration::from_secs(20), rate: 500 }
    }
}

impl Rates {
    /// The rates as a frame carries them: three numbers, with the times in milliseconds.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let time = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let rate = u64::try_from(self.rate).unwrap_or(u64::MAX);
        [time(self.stalled), time(self.message), rate].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// The rates that a frame carries, or the defaults if the host sends none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut numbers = crate::abi::frame::numbers(bytes);
        match [numbers.next(), numbers.next(), numbers.next()] {
            [Some(stalled), Some(message), Some(rate)] => Self {
                stalled: Duration::from_millis(stalled),
                message: Duration::from_millis(message),
                rate: usize::try_from(rate).unwrap_or(usize::MAX),
            },
            _ => Self::default(),
        }
    }

    /// The pace of a message that arrives.
    #[must_use]
    pub fn coming(&self) -> Pace {
        Pace::new(self.message, self.rate)
    }

    /// The pace at which a client must read.
    #[must_use]
    pub fn leaving(&self) -> Pace {
        Pace::new(self.stalled, self.rate)
    }
}

/// A transfer that must move at a minimum rate within each period, or be done by its end.
#[derive(Debug, Clone)]
pub struct Pace {
    within: Duration,
    /// The bytes that must move within that time.
    least: usize,
    /// The start of the current period. `None`: nothing has to move.
    since: Option<Instant>,
    moved: usize,
}

impl Pace {
    /// Nothing has to move yet. Later, `rate` bytes a second must move, measured over each period `within`.
    #[must_use]
    pub fn new(within: Duration, rate: usize) -> Self {
        let millis = usize::try_from(within.as_millis()).unwrap_or(usize::MAX);
        Self { within, least: (rate.saturating_mul(millis) / 1000).max(1), since: None, moved: 0 }
    }

    /// Begins a period, unless one has begun already: something has to move.
    pub fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Counts bytes that have moved. Once there are enough, a new period begins.
    pub fn moved(&mut self, bytes: usize, now: Instant) {
        self.moved = self.moved.saturating_add(bytes);
        if self.since.is_some() && self.moved >= self.least {
            (self.since, self.moved) = (Some(now), 0);
        }
    }

    /// Nothing has to move any more: the transfer is done, or nobody waits for it.
    pub fn rest(&mut self) {
        (self.since, self.moved) = (None, 0);
    }

    /// Extends the period by a time in which nothing could move, through no fault of the client.
    pub fn pause(&mut self, time: Duration) {
        self.since = self.since.map(|since| since + time);
    }

    /// The deadline: enough must have moved by then. `None`: nothing has to move.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + self.within)
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| now >= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The second at which it is late, if this many bytes move after each second. `None`: not within ten minutes.
    fn late_after(bytes: impl Fn(u32) -> usize) -> Option<u32> {
        let (mut pace, start) = (Pace::new(20 * SECOND, 500), Instant::now());
        pace.begin(start);
        (1..=600).find(|second| {
            let now = start + *second * SECOND;
            let late = pace.is_late(now);
            pace.moved(bytes(*second), now);
            late
        })
    }

    #[test]
    fn a_slow_transfer_is_late_and_a_large_one_is_not() {
        assert_eq!(late_after(|_| 0), Some(20));
        assert_eq!(late_after(|_| 1), Some(20), "a byte now and then");
        assert_eq!(late_after(|_| 400), Some(20));
        assert_eq!(late_after(|_| 600), None);
        assert_eq!(late_after(|second| if second % 10 == 0 { 10_000 } else { 0 }), None, "in pieces");
        assert_eq!(late_after(|second| if second == 1 { 1 << 20 } else { 0 }), Some(21), "much, and then nothing");
    }

    #[test]
    fn nothing_is_late_while_nothing_has_to_move() {
        let (mut pace, start) = (Pace::new(20 * SECOND, 500), Instant::now());
        assert_eq!(pace.due(), None);
        pace.begin(start);
        pace.begin(start + SECOND);
        assert_eq!(pace.due(), Some(start + 20 * SECOND), "since it began");
        pace.pause(5 * SECOND);
        assert!(!pace.is_late(start + 24 * SECOND) && pace.is_late(start + 25 * SECOND));
        pace.rest();
        assert!(!pace.is_late(start + 100 * SECOND));
        pace.begin(start + 100 * SECOND);
        assert_eq!(pace.due(), Some(start + 120 * SECOND));
    }

    #[test]
    fn rates_are_read_as_written() {
        let rates = Rates { stalled: SECOND, message: 3 * SECOND, rate: 7 };
        assert_eq!(Rates::from_bytes(&rates.to_bytes()), rates);
        assert_eq!(Rates::from_bytes(&[]), Rates::default());
        assert_eq!(Rates::from_bytes(&[1; 23]), Rates::default());
    }
}
