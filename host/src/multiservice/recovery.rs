//! Decides when a service whose process has died is restarted, and when it is given up. Reads no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// After this many crashes within [`WINDOW`], the code is not started again.
const CRASHES: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
/// The delay before the second restart. It doubles each time, up to [`LONGEST`]. The first restart has no delay.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// After this long without a crash, delays begin again from none.
const GOOD: Duration = Duration::from_secs(600);

/// What comes after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is restarted after this delay.
    Start(Duration),
    /// This code is not started again.
    Quarantine,
}

/// The crashes of one version of the code.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    latest: VecDeque<Instant>,
    rest: Duration,
}

impl Recovery {
    /// Records a crash at this time.
    pub(super) fn crashed(&mut self, now: Instant) -> Next {
        if self.latest.back().is_some_and(|last| now.saturating_duration_since(*last) >= GOOD) {
            self.rest = Duration::ZERO;
        }
        self.latest.push_back(now);
        while self.latest.front().is_some_and(|first| now.saturating_duration_since(*first) >= WINDOW) {
            self.latest.pop_front();
        }
        if self.latest.len() >= CRASHES {
            return Next::Quarantine;
        }
        let rest = self.rest;
        self.rest = (rest * 2).clamp(FIRST, LONGEST);
        Next::Start(rest)
    }

    /// Other code serves, which has not crashed yet.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A service's crashes, for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crashes {
    /// How many there were since the host started.
    pub count: u64,
    /// How often it was restarted.
    pub restarts: u64,
    /// How it last crashed, with the methods or the places in the code.
    pub last: Option<String>,
    /// Why it does not serve at the moment, and what comes next.
    pub waits: Option<String>,
}

/// A service's code has crashed too often. The keeper of its files may have other code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The service.
    pub service: String,
    /// The generation.
    pub generation: u32,
    /// How it last crashed.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decisions after crashes at these seconds after the first.
    fn after(seconds: &[f64]) -> Vec<Next> {
        let (mut recovery, began) = (Recovery::default(), Instant::now());
        seconds.iter().map(|at| recovery.crashed(began + Duration::from_secs_f64(*at))).collect()
    }

    fn start(seconds: f64) -> Next {
        Next::Start(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn restarts_back_off_and_three_in_a_minute_quarantine() {
        for (crashes, comes) in [
            (&[0.0][..], vec![start(0.0)]),
            (&[0.0, 1.0], vec![start(0.0), start(0.1)]),
            (&[0.0, 1.0, 59.0], vec![start(0.0), start(0.1), Next::Quarantine]),
            (&[0.0, 30.0, 60.0, 89.0], vec![start(0.0), start(0.1), start(0.2), Next::Quarantine]),
            // One crash in forty seconds: the delay grows each time, up to half a minute.
            (
                &[0.0, 40.0, 80.0, 120.0, 160.0, 200.0, 240.0, 280.0, 320.0, 360.0, 400.0],
                [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0].map(start).to_vec(),
            ),
            // Ten minutes without a crash.
            (&[0.0, 40.0, 640.0], vec![start(0.0), start(0.1), start(0.0)]),
            (&[0.0, 40.0, 639.0], vec![start(0.0), start(0.1), start(0.2)]),
        ] {
            assert_eq!(after(crashes), comes, "{crashes:?}");
        }
    }
}
