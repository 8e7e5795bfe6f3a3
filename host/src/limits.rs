//! The limits that an operator can set, by name: one table for `[limits]` in credhost.toml, for `credhost limits`, and
//! for errors about invalid names and values.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{LimitValue, Settings};
use crate::memory;
use crate::nearest::nearest;
use crate::session::Limits;

/// The unit of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: a number, or one with KiB, MiB or GiB.
    Bytes,
    /// Seconds: a number, or one with ms, s, min or h. Stored in milliseconds.
    Time,
    /// A number of items.
    Count,
}

/// One limit.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in `[limits]`.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// The smallest and the largest allowed value.
    pub range: (u64, u64),
    /// A description.
    pub about: &'static str,
    /// Reads its value.
    pub get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

macro_rules! settings {
    (@get Time $limits:ident $($at:tt)+) => { u64::try_from($limits.$($at)+.as_millis()).unwrap_or(u64::MAX) };
    (@get $unit:ident $limits:ident $($at:tt)+) => { $limits.$($at)+ as u64 };
    (@set Time $limits:ident $value:ident $($at:tt)+) => { $limits.$($at)+ = Duration::from_millis($value) };
    (@set $unit:ident $limits:ident $value:ident $($at:tt)+) => { $limits.$($at)+ = size($value).try_into().unwrap_or_default() };
    ($( $name:literal $unit:ident $least:literal..=$most:expr, [$($at:tt)+], $about:literal; )*) => {
        /// All limits, in the order of display.
        pub const SETTINGS: &[Setting] = &[$(
            Setting {
                name: $name,
                unit: Unit::$unit,
                range: ($least, $most),
                about: $about,
                get: |limits| settings!(@get $unit limits $($at)+),
                set: |limits, value| settings!(@set $unit limits value $($at)+),
            },
        )*];
    };
}

const GIB: u64 = 1 << 30;
/// Descriptors that are not available to clients: for the store, the control socket, libraries and their vetting.
const KEPT_BACK: usize = 256;

settings! {
    "memory" Bytes 16_777_216..=1024 * GIB, [memory], "memory for all clients together";
    "connections" Count 1..=1_000_000, [connections], "all connections together";
    "per_source" Count 1..=1_000_000, [per_source], "connections from one address";
    "gate" Bytes 1_048_576..=16 * GIB, [slots.gate.all], "calls that wait for one service; a quarter of this for one identity";
    "gate_each" Bytes 1_024..=GIB, [slots.gate.each], "calls of one identity that wait for one service, also when the gate is full";
    "checks" Count 8..=100_000, [checks], "password checks that wait, a quarter of them for sources of earlier logins";
    "checks_per_source" Count 1..=10_000, [checks_per_source], "password checks that wait, for one source";
    "checks_per_connection" Count 1..=1_000, [checks_per_connection], "password checks that wait, for one connection";
    "questions" Count 1..=1_000, [questions], "login steps of a connection that wait; beyond it, the host stops reading from the connection";
    "refusals" Count 1..=10_000, [refusals], "delayed refusals of a connection; beyond it, the host stops reading from the connection";
    "known_sources" Count 100..=100_000_000, [known_sources], "sources of earlier logins that are remembered";
    "reserve" Bytes 1_048_576..=GIB, [reserve], "disk space reserved for revocations";
    "login" Time 1_000..=3_600_000, [login], "time to log in";
    "greeting" Time 1_000..=3_600_000, [greeting], "time for a PROXY header, for the bytes that select one of several listeners, and for TLS at a service's listener";
    "stalled" Time 1_000..=3_600_000, [stalled], "time for a client to read waiting answers, unless it reads at the rate";
    "silence" Time 4_000..=43_200_000, [silence], "time without a sign of life before an unreachable client is disconnected";
    "message" Time 1_000..=3_600_000, [message.0], "time for a message to be complete once it has begun, unless it arrives at the rate";
    "rate" Count 1..=1_000_000, [message.1], "bytes a second at which a message must arrive, and answers must be read";
    "grace" Time 0..=3_600_000, [grace], "time for calls under way when the host stops";
    "orphans" Time 0..=86_400_000, [slots.services.orphans], "time for calls whose clients have gone";
    "orphan_calls" Count 1..=1_000_000, [slots.services.orphan_calls], "calls of one identity whose clients have gone, for each service";
    "calls" Count 1..=1_000_000, [after.calls], "calls of a connection under way";
    "parked" Bytes 1_024..=GIB, [after.parked], "calls of a connection that wait for others";
    "mind" Bytes 1_024..=131_072, [mind], "a mind that is not one object";
    "attachments" Count 1..=1_000_000, [after.attachments], "attachments of a connection";
    "objects" Count 1..=1_000_000, [after.references], "objects of services that a client holds";
    "unanswered" Count 1..=1_000_000, [after.unanswered], "calls by services that a client has not answered";
    "identity.attachments" Count 1..=10_000_000, [identity_attachments], "attachments of all connections of one identity";
    "identity.objects" Count 1..=100_000_000, [identity_objects], "objects of services that all clients of one identity hold";
    "identity.unanswered" Count 1..=100_000_000, [identity_unanswered], "calls by services that all clients of one identity have not answered";
    "unread" Bytes 1_024..=GIB, [after.unread], "unread answers; beyond it, calls of a connection wait";
    "backlog" Bytes 65_536..=GIB, [backlog], "unread answers; beyond it, the host disconnects the client; at least twice unread";
    "copied" Bytes 1_024..=GIB, [copied], "stored states of a client's cached objects";
    "copied_changes" Bytes 0..=GIB, [slots.services.changes], "changes to a client's cached objects that no service has asked for yet";
    "copied_handed_over" Bytes 0..=GIB, [slots.services.copies], "copies of clients' cached objects that a reload hands over";
    "item" Bytes 1_024..=1_073_741_823, [after.jelly.item], "one string, or elements of one list; Twisted takes 655,360";
    "expression" Bytes 4_096..=GIB, [after.jelly.expression], "one message";
    "depth" Count 16..=256, [after.jelly.depth], "nesting of one message";
    "values" Count 64..=100_000_000, [after.jelly.values], "values in one message, shared ones counted each time";
    "before_login.item" Bytes 256..=655_360, [before.jelly.item], "one string, or elements of one list, before login";
    "before_login.expression" Bytes 1_024..=8_388_608, [before.jelly.expression], "one message, before login";
    "before_login.depth" Count 8..=128, [before.jelly.depth], "nesting of one message, before login";
    "before_login.values" Count 32..=1_000_000, [before.jelly.values], "values in one message, before login";
    "before_login.calls" Count 1..=1_000, [before.calls], "calls of a connection under way, before login";
    "before_login.parked" Bytes 1_024..=1_048_576, [before.parked], "calls of a connection that wait for others, before login";
    "before_login.attachments" Count 1..=1_000, [before.attachments], "attachments of a connection, before login";
    "before_login.unanswered" Count 1..=1_000, [before.unanswered], "calls by services that a client has not answered, before login";
    "before_login.objects" Count 2..=1_024, [before.references], "challenges that a connection has";
    "before_login.unread" Bytes 1_024..=1_048_576, [before.unread], "unread answers; beyond it, calls of a connection wait; before login";
    "doors.arriving" Count 1..=1_000_000, [arriving.0], "connections of a service's listener that wait for the service";
    "doors.arriving_time" Time 1_000..=3_600_000, [arriving.1], "time that each of these connections waits";
    "doors.unread" Bytes 65_536..=16 * GIB, [slots.services.unread], "unread output of all clients of a service's doors; beyond it, each has doors.each";
    "doors.each" Bytes 256..=16_777_216, [slots.services.each], "unread output of one of these clients, also when doors.unread is used up";
    "doors.input" Bytes 256..=GIB, [slots.services.input], "an incomplete message of one of these clients, if its service allows more";
    "doors.output" Bytes 1_024..=GIB, [slots.services.output], "unread output of one of these clients, if its service allows more; for new connections";
    "doors.elsewhere" Count 0..=1_000, [elsewhere], "connections to other services, for a login by a service's door";
    "http.idle" Time 1_000..=3_600_000, [slots.services.http_idle], "HTTP: time for a request's head, and without a request; for new connections";
    "http.request" Time 1_000..=3_600_000, [slots.services.http_request], "HTTP: time for a request with its body; for new connections";
    "http.head" Bytes 8_192..=16_777_216, [slots.services.http_head], "HTTP: a request's head; for new connections";
    "http.at_once" Count 1..=100_000, [slots.services.http_at_once], "HTTP: concurrent requests of one visitor behind a proxy; for new connections";
    "state" Bytes 1_024..=536_870_912, [slots.services.state], "a saved state of a service, or of one perspective";
    "data.key" Bytes 64..=65_536, [slots.services.key], "a key of a service's data";
    "data.value" Bytes 1_024..=268_435_456, [slots.services.value], "a value of a service's data";
    "data.change" Bytes 65_536..=268_435_456, [slots.services.change], "a change of a service's data";
    "data.answer" Bytes 65_536..=268_435_456, [slots.data_answer], "an answer of a service's data";
    "worker.message" Bytes 1_048_576..=GIB, [slots.worker.message], "a message of a service's own process, in addition to the largest state; a lower value applies to new processes";
    "worker.questions" Count 16..=10_000_000, [slots.worker.questions], "open questions of a service's own process; a lower value applies to new processes";
    "worker.uncommitted" Bytes 1_048_576..=16 * GIB, [slots.uncommitted], "unsaved changes, or four times the largest state; beyond it, the host stops reading from a service's own process";
}

/// An error in a limit, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has this name.
    #[error("[limits] {name}: there is no such limit{}", near.as_ref().map_or_else(String::new, |near| format!("; is {near} meant?")))]
    Unknown {
        /// The name.
        name: String,
        /// The most similar name.
        near: Option<String>,
    },
    /// Its value cannot be parsed.
    #[error("[limits] {name} = {value:?}: expected {expected}")]
    Unreadable {
        /// The limit.
        name: &'static str,
        /// The value in the file.
        value: String,
        /// The expected form.
        expected: &'static str,
    },
    /// Its value is too small or too large.
    #[error("[limits] {name} is {value}: the range is {least} to {most}")]
    Range {
        /// The limit.
        name: &'static str,
        /// The value.
        value: String,
        /// The smallest allowed value.
        least: String,
        /// The largest.
        most: String,
    },
}

impl Unit {
    pub(crate) fn expected(self) -> &'static str {
        match self {
            Self::Bytes => "a size, such as 8388608 or \"8 MiB\"",
            Self::Time => "a time, such as 30 (seconds) or \"2 min\"",
            Self::Count => "a whole number",
        }
    }

    /// Formats a value for people, in the form that `[limits]` accepts.
    #[must_use]
    pub fn shown(self, value: u64) -> String {
        let whole = |units: &[(&str, u64)]| {
            let unit = units.iter().find(|(_, size)| value >= *size && value.is_multiple_of(*size));
            unit.map(|(name, size)| format!("{} {name}", value / size))
        };
        match self {
            Self::Bytes => whole(&[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]).unwrap_or(value.to_string()),
            Self::Time => whole(&[("h", 3_600_000), ("min", 60_000), ("s", 1_000)]).unwrap_or(format!("{value} ms")),
            Self::Count => value.to_string(),
        }
    }

    pub(crate) fn read(self, value: &LimitValue) -> Option<u64> {
        let text = match value {
            LimitValue::Number(number) if self == Self::Time => return number.checked_mul(1000),
            LimitValue::Number(number) => return Some(*number),
            LimitValue::Text(text) => text.trim(),
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].trim());
        let times = match (self, unit) {
            (Self::Bytes, "B" | "") | (Self::Time, "ms") | (Self::Count, "") => 1,
            (Self::Bytes, "KiB") => 1 << 10,
            (Self::Bytes, "MiB") => 1 << 20,
            (Self::Bytes, "GiB") => 1 << 30,
            (Self::Time, "s" | "") => 1000,
            (Self::Time, "min") => 60_000,
            (Self::Time, "h") => 3_600_000,
            _ => return None,
        };
        number.checked_mul(times)
    }
}

/// Returns these limits, overridden by the values in `[limits]`.
///
/// # Errors
/// The first invalid one.
pub fn with(mut limits: Limits, section: &BTreeMap<String, LimitValue>) -> Result<Limits, LimitError> {
    for (name, value) in section {
        let setting = SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| LimitError::Unknown {
            name: name.clone(),
            near: nearest(name, SETTINGS.iter().map(|setting| setting.name)),
        })?;
        let shown = || match value {
            LimitValue::Number(number) => number.to_string(),
            LimitValue::Text(text) => text.clone(),
        };
        let (name, unit, (least, most)) = (setting.name, setting.unit, setting.range);
        let read = unit.read(value).ok_or_else(|| LimitError::Unreadable {
            name,
            value: shown(),
            expected: unit.expected(),
        })?;
        if !(least..=most).contains(&read) {
            let (value, least, most) = (shown(), unit.shown(least), unit.shown(most));
            return Err(LimitError::Range { name, value, least, most });
        }
        (setting.set)(&mut limits, read);
    }
    Ok(limits)
}

/// Returns the limits of a host from its settings. `refusal` is the time after which refusals are sent. By default,
/// `memory` is half of the available memory, and `connections` is limited by the available descriptors.
/// `[state] largest` is the older name of `[limits] state`.
///
/// # Errors
/// The first invalid one.
pub fn of_host(refusal: Duration, settings: &Settings) -> Result<Limits, LimitError> {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map_or(usize::MAX, size);
    let mut limits = Limits::default();
    let connections = limits.connections.min(descriptors.saturating_sub(KEPT_BACK).max(1));
    limits = Limits { refusal, memory: memory::available() / 2, connections, ..limits };
    if settings.state.largest != limits.slots.services.state {
        let largest = LimitValue::Number(settings.state.largest as u64);
        limits = with(limits, &BTreeMap::from([("state".to_owned(), largest)]))?;
    }
    with(limits, &settings.limits)
}

/// Limits of the whole host, which no listener can override.
const OF_HOST: [&str; 14] = [
    "memory",
    "greeting",
    "state",
    "gate",
    "gate_each",
    "checks",
    "checks_per_source",
    "known_sources",
    "reserve",
    "grace",
    "orphans",
    "orphan_calls",
    "copied_changes",
    "copied_handed_over",
];
/// The prefixes of further limits of the whole host.
const GROUPS_OF_HOST: [&str; 4] = ["doors.", "http.", "data.", "worker."];

fn is_of_host(name: &str) -> bool {
    OF_HOST.contains(&name) || GROUPS_OF_HOST.iter().any(|group| name.starts_with(group))
}

/// Returns these limits, overridden by a section for listeners: `[multiservice.games.limits]`, where `place` is
/// `multiservice.games`.
///
/// # Errors
/// The first invalid one, with its place.
pub fn of_listeners(limits: Limits, place: &str, section: &BTreeMap<String, LimitValue>) -> Result<Limits, String> {
    if let Some(name) = section.keys().find(|name| is_of_host(name)) {
        return Err(format!("[{place}.limits] {name}: this limit is for the whole host; set it in [limits]"));
    }
    with(limits, section).map_err(|error| error.to_string().replacen("[limits]", &format!("[{place}.limits]"), 1))
}

/// The values in these limits that differ from the other ones, by name, formatted.
#[must_use]
pub fn others(limits: &Limits, than: &Limits) -> Vec<(String, String)> {
    let other = SETTINGS.iter().filter(|setting| (setting.get)(limits) != (setting.get)(than));
    other.map(|setting| (setting.name.to_owned(), setting.unit.shown((setting.get)(limits)))).collect()
}

/// A limit, for display.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LimitStatus {
    /// Its name in `[limits]`.
    pub name: String,
    /// Its value, in bytes, milliseconds or items.
    pub value: u64,
    /// The value for people, in the form that `[limits]` accepts.
    pub shown: String,
    /// The current use, for people. `None` if the limit is for each connection.
    pub used: Option<String>,
    /// A description.
    pub about: String,
}

/// The current use of limits that all clients share.
#[derive(Debug, Clone, Copy)]
pub struct InUse {
    /// Bytes that are stored for clients.
    pub memory: usize,
    /// Connections.
    pub connections: usize,
}

/// All limits, for display.
#[must_use]
pub fn status(limits: &Limits, used: Option<InUse>) -> Vec<LimitStatus> {
    let row = |setting: &Setting| {
        let used = used.and_then(|used| match setting.name {
            "memory" => Some(format!("{:.1} MiB", used.memory as f64 / f64::from(1 << 20))),
            "connections" => Some(used.connections.to_string()),
            _ => None,
        });
        let value = (setting.get)(limits);
        let (name, shown, about) = (setting.name.to_owned(), setting.unit.shown(value), setting.about.to_owned());
        LimitStatus { name, value, shown, used, about }
    };
    SETTINGS.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str, value: LimitValue) -> Result<Limits, LimitError> {
        with(Limits::default(), &BTreeMap::from([(name.to_owned(), value)]))
    }

    fn text(value: &str) -> LimitValue {
        LimitValue::Text(value.to_owned())
    }

    #[test]
    fn every_limit_is_read_back_as_it_was_shown() {
        for setting in SETTINGS {
            let default = (setting.get)(&Limits::default());
            let (least, most) = setting.range;
            assert!((least..=most).contains(&default), "{}: {default}", setting.name);
            for value in [least, default, most] {
                let limits = changed(setting.name, text(&setting.unit.shown(value))).unwrap();
                assert_eq!((setting.get)(&limits), value, "{}", setting.name);
                let others = SETTINGS.iter().filter(|other| other.name != setting.name);
                let changed = others.filter(|other| (other.get)(&limits) != (other.get)(&Limits::default())).count();
                assert_eq!(changed, 0, "{} is its own", setting.name);
            }
            for outside in [least.checked_sub(1), most.checked_add(1)].into_iter().flatten() {
                let refused = changed(setting.name, text(&setting.unit.shown(outside)));
                assert!(matches!(refused, Err(LimitError::Range { .. })), "{} = {outside}", setting.name);
            }
        }
    }

    #[test]
    fn listeners_have_their_own_limits_and_errors_name_the_section() {
        let all = Limits { per_source: 50, ..Limits::default() };
        let of = |name: &str, value: LimitValue| {
            of_listeners(all, "multiservice.games", &BTreeMap::from([(name.to_owned(), value)]))
        };
        let games = of("calls", LimitValue::Number(5)).unwrap();
        assert_eq!((games.after.calls, games.per_source), (5, 50));
        assert_eq!(others(&games, &all), [("calls".to_owned(), "5".to_owned())]);
        for (name, value, said) in [
            ("memory", text("1 GiB"), "[multiservice.games.limits] memory: this limit is for the whole host"),
            ("cals", text("5"), "[multiservice.games.limits] cals: there is no such limit; is calls meant?"),
            ("login", text("soon"), "[multiservice.games.limits] login = \"soon\": expected a time"),
            ("depth", LimitValue::Number(1), "[multiservice.games.limits] depth is 1: the range is 16 to 256"),
        ] {
            let wrong = of(name, value).unwrap_err();
            assert!(wrong.starts_with(said), "{wrong}");
        }
    }

    #[test]
    fn invalid_limits_are_explained_in_the_operators_terms() {
        for (name, value, said) in [
            ("per_sauce", text("5"), "[limits] per_sauce: there is no such limit; is per_source meant?"),
            ("zebra", text("5"), "[limits] zebra: there is no such limit"),
            ("login", text("soon"), "[limits] login = \"soon\": expected a time, such as 30 (seconds) or \"2 min\""),
            ("parked", text("8 MB"), "[limits] parked = \"8 MB\": expected a size, such as 8388608 or \"8 MiB\""),
            ("calls", text("-1"), "[limits] calls = \"-1\": expected a whole number"),
            ("depth", LimitValue::Number(1), "[limits] depth is 1: the range is 16 to 256"),
            (
                "login",
                text("99999999999999999999 h"),
                "[limits] login = \"99999999999999999999 h\": expected a time, such as 30 (seconds) or \"2 min\"",
            ),
        ] {
            assert_eq!(changed(name, value).unwrap_err().to_string(), said);
        }
    }

    /// In TOML, a limit has the name that is shown, and all limits fit into one section.
    #[test]
    fn names_are_written_in_toml_as_they_are_shown() {
        let default = Limits::default();
        let shown = |setting: &Setting| {
            let value = setting.unit.shown((setting.get)(&default));
            if setting.unit == Unit::Count { value } else { format!("{value:?}") }
        };
        let lines: Vec<String> = SETTINGS.iter().map(|one| format!("{} = {}", one.name, shown(one))).collect();
        let text = format!("[limits]\n{}\n[limits.more.of]\nthem = 5\n", lines.join("\n"));
        let mut settings: Settings = toml_edit::de::from_str(&text).unwrap();
        assert!(settings.limits.remove("more.of.them").is_some(), "a section of its own is another way to write it");
        assert_eq!(settings.limits.len(), SETTINGS.len());
        assert_eq!(with(default, &settings.limits), Ok(default));
    }

    /// ARCHITECTURE.md lists every limit and how to set it.
    #[test]
    fn every_row_of_the_table_says_how_it_is_set() {
        let text = include_str!("../../ARCHITECTURE.md");
        let table = text.split("## Limits").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| limit |"));
        let (mut named, mut count) = (std::collections::BTreeSet::new(), 0);
        for row in rows {
            let by = row.trim_end_matches(" |").rsplit('|').next().unwrap().trim();
            let names: Vec<&str> = by.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "nobody can set this: {row}");
            let elsewhere = by.contains("in `[service.");
            for name in names {
                let known = SETTINGS.iter().any(|setting| setting.name == name);
                assert!(known || elsewhere || name.starts_with("Door::"), "{name} is no limit: {row}");
                named.insert(name);
            }
            count += 1;
        }
        assert!(count > 30, "{count} rows were found");
        let missing: Vec<_> = SETTINGS.iter().map(|one| one.name).filter(|name| !named.contains(name)).collect();
        assert_eq!(missing, [""; 0], "these are not in the table");
    }
}
