//! Sends a request to the running host, or performs it here if none runs.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant, UNIX_EPOCH};

use credhost::accounts::Accounts;
use credhost::config::{Home, HomeError};
use credhost::control::{self, ControlError, ControlFailure, Request, Secret};
use credhost::show;
use zeroize::Zeroizing;

use super::{CliError, warn};

pub(super) fn cli_error(failed: ControlFailure) -> CliError {
    CliError { error: failed.error, hint: failed.hint }
}

/// Performs a request: in a running host, if there is one; otherwise on the files of the home.
pub(super) fn ask(home: &Home, request: &Request) -> Result<serde_json::Value, CliError> {
    let mut bar = Progress::new();
    let mut patience = Patience::new();
    loop {
        match control::send(&home.control(), request, &mut |done, of| bar.show(done, of)) {
            Ok(answer) => return answer.map(warned).map_err(cli_error),
            Err(ControlError::NoHost) => {}
            // The host was stopping.
            Err(ControlError::NotBegun) if patience.again() => continue,
            Err(error) => return Err(error.into()),
        }
        let makes = matches!(request, Request::IdentityAdd { .. } | Request::IdentityImport { dry_run: false, .. });
        if makes {
            home.make()?
        } else {
            home.check()?;
            // A command that only reads leaves nothing behind.
            if !home.store().exists() && !home.config().exists() {
                let nothing = format!("{} has no store yet, so no identities", home.path().display());
                return Err(
                    CliError::new(nothing).hint("`credhost identity add NAME` adds the first, `credhost run` serves")
                );
            }
        }
        match home.lock() {
            // The lock belongs to a command that ends soon, to a host that stops, or to one that starts, which will answer.
            Err(HomeError::Locked(_)) if patience.again() => {}
            lock => {
                let _lock = lock?;
                let (accounts, _) = Accounts::open(home, &by())?;
                let done = control::perform(request, &accounts, None, &mut |done, of| bar.show(done, of));
                return done.map(warned).map_err(cli_error);
            }
        }
    }
}

/// Sends a request to a running host. Returns `None` if none runs.
pub(super) fn ask_running(home: &Home, request: &Request) -> Result<Option<serde_json::Value>, CliError> {
    let mut patience = Patience::new();
    loop {
        match control::send(&home.control(), request, &mut |_, _| {}) {
            Ok(answer) => return answer.map(Some).map_err(cli_error),
            // A host that stops, or that does not answer yet, holds the lock.
            Err(ControlError::NoHost) if home.is_locked() && patience.again() => {}
            Err(ControlError::NotBegun) if patience.again() => {}
            Err(ControlError::NoHost) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Prints the warnings about something that was done.
fn warned(done: serde_json::Value) -> serde_json::Value {
    for what in done["warnings"].as_array().into_iter().flatten().filter_map(|what| what.as_str()) {
        warn(&format!("credhost: warning: {}", show::line(what)));
    }
    done
}

/// How long a command waits while another process holds the home's lock.
const LOCKED: Duration = Duration::from_secs(10);

/// Waits for the home's lock, in short steps.
pub(super) struct Patience(Instant);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Waits a moment. Returns false when it has waited long enough.
    pub(super) fn again(&mut self) -> bool {
        std::thread::sleep(Duration::from_millis(10));
        self.0.elapsed() < LOCKED
    }
}

/// Who acts here, for the audit trail.
pub(super) fn by() -> String {
    format!("a command of uid {}", rustix::process::getuid().as_raw())
}

/// Progress, shown only to a person at a terminal.
pub(super) struct Progress {
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: None }
    }

    /// Shows how much is done, of how much (0: unknown); at most ten times a second.
    pub(super) fn show(&mut self, done: u64, of: u64) {
        let soon = self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(100));
        if !self.terminal || soon || done == 0 {
            return;
        }
        self.shown = Some(Instant::now());
        let percent = (done * 100).checked_div(of).map_or_else(String::new, |percent| format!(" ({percent} %)"));
        eprint!("\r{done}{percent} …\x1b[K");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// A time, for a person to read.
pub(super) fn when(seconds: u64) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// A day, or a moment, in seconds since 1970: "2027-01-31" (its beginning, UTC), "2027-01-31T12:00:00Z".
fn moment(text: &str) -> Option<u64> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let at = humantime::parse_rfc3339_weak(&whole).ok()?;
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// "90d" from now, or a date: in seconds since 1970.
pub(super) fn expiry(text: Option<&str>) -> Result<Option<u64>, CliError> {
    let Some(text) = text else { return Ok(None) };
    let at = match moment(text) {
        Some(at) => at,
        None => {
            let time = humantime::parse_duration(text).map_err(|error| no_time(text, &error))?;
            credhost::store::now().saturating_add(time.as_secs())
        }
    };
    if at > credhost::store::LATEST {
        return Err(
            CliError::new(format!("{text:?} is after the year 9999")).hint("leave it out, and it does not expire")
        );
    }
    if at <= credhost::store::now() {
        return Err(
            CliError::new(format!("{text:?} has passed already")).hint("it would be expired from the beginning")
        );
    }
    Ok(Some(at))
}

fn no_time(text: &str, error: &humantime::DurationError) -> CliError {
    let is_date = text.len() > 4 && text.as_bytes()[..4].iter().all(u8::is_ascii_digit) && text.as_bytes()[4] == b'-';
    let what = match is_date {
        true => format!("{text:?} is not a time: there is no such day after 1970, or it is not in UTC"),
        false => format!("{text:?} is not a time: {error}"),
    };
    CliError::new(what).hint("write it as 90d, 12h, 1y, 2027-01-31 or 2027-01-31T12:00:00Z")
}

/// "2h" ago, or a date: in milliseconds since 1970.
pub(super) fn since_when(text: &str) -> Result<u64, CliError> {
    let seconds = match moment(text) {
        Some(at) => at,
        None => {
            let time = humantime::parse_duration(text).map_err(|error| no_time(text, &error))?;
            credhost::store::now().saturating_sub(time.as_secs())
        }
    };
    Ok(seconds.saturating_mul(1000))
}

/// A password: from standard input, or typed at a prompt; twice, if it is a new one.
pub(super) fn password(from_stdin: bool, prompt: &str, twice: bool) -> Result<Secret, CliError> {
    if from_stdin {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().lock().read_line(&mut line)?;
        let text = line.trim_end_matches(['\n', '\r']);
        return Ok(Secret(Zeroizing::new(text.to_owned())));
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::new("no terminal is available to ask for a password")
            .hint("pass it on standard input: --password-stdin"));
    }
    let typed = Zeroizing::new(rpassword::prompt_password(prompt)?);
    if twice {
        let again = Zeroizing::new(rpassword::prompt_password("once more: ")?);
        if *typed != *again {
            return Err(CliError::new("the two passwords differ").hint("nothing was changed; try again"));
        }
    }
    Ok(Secret(typed))
}

/// A table with names for the columns.
pub(super) fn headed<const N: usize>(heads: [&str; N], rows: Vec<Vec<String>>) -> String {
    table(&[vec![heads.map(str::to_owned).to_vec()], rows].concat())
}

/// A table; each column is as wide as its widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    // The text of a cell may come from anybody.
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| show::line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = widths[column] - cell.chars().count();
            format!("{cell}{}", " ".repeat(pad))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
