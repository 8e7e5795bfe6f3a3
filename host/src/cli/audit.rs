//! `credhost audit`

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use credhost::show;
use credhost::store::audit::Line;
use serde_json::{Map, Value};

use super::home::{ask, since_when};
use super::{CliError, Output, output, say};

/// How many lines one request asks for.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Print the trail, oldest first. With --json, one object a line; `at` is in seconds since 1970.
    Show {
        /// Only lines after this number.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// Only lines that contain this text: an identity's name, "login.refused" …
        #[arg(long, value_name = "TEXT")]
        with: Option<String>,
        /// Only the last COUNT lines.
        #[arg(long, value_name = "COUNT")]
        last: Option<usize>,
        /// Only lines since: "2h" ago, "2026-11-28", "2026-11-28T14:00:00Z".
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Continue with new lines, until Ctrl-C.
        #[arg(long)]
        follow: bool,
    },
    /// Detect changed, removed or moved lines. Prints the head: store it outside of this machine, and pass it the next
    /// time.
    Verify {
        /// The head from an earlier `audit verify`: "NUMBER DIGEST".
        #[arg(long)]
        head: Option<String>,
        /// Exported segments, the oldest first. Each is verified alone. Each must continue where the one before it ends, and
        /// the kept lines where the last one ends.
        #[arg(long = "file", value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Export the trail into a file that can be verified alone.
    Export {
        /// A new file.
        file: PathBuf,
        /// Only what `prune --keep` would drop: "90 days", "100 MiB".
        #[arg(long, value_name = "TIME|SIZE")]
        older: Option<String>,
    },
    /// Drop the oldest lines; the rest still verifies. `[audit] keep` in credhost.toml does this automatically.
    Prune {
        /// How much to keep: "90 days" keeps the lines that are not older, "100 MiB" the latest lines of that size.
        #[arg(long, value_name = "TIME|SIZE")]
        keep: String,
        /// Write the dropped lines into this new file first.
        #[arg(long, value_name = "FILE", conflicts_with = "discard")]
        export: Option<PathBuf>,
        /// Drop the lines for good, without a copy.
        #[arg(long)]
        discard: bool,
    },
}

impl Audit {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::Show { after, with, last, since, follow } => {
                let since = since.as_deref().map(since_when).transpose()?;
                Show { after, with, last, since, follow }.run(home, output)?;
            }
            Self::Verify { head, files } => verify(home, output, head, &files)?,
            Self::Export { file, older } => {
                let file = std::path::absolute(file)?;
                let answer = ask(home, &Request::AuditExport { file: file.clone(), older })?;
                output.show(&answer, || match answer.is_null() {
                    true => "nothing is older: no file was written".to_owned(),
                    false => format!("{}: lines {} to {}", file.display(), answer["first"], answer["last"]),
                });
            }
            Self::Prune { export: None, discard: false, .. } => {
                return Err(CliError::new("where should the dropped lines go?")
                    .hint("--export FILE writes them into a file first; --discard drops them for good"));
            }
            Self::Prune { keep, export, .. } => {
                let file = export.map(std::path::absolute).transpose()?;
                let answer = ask(home, &Request::AuditPrune { keep, file: file.clone() })?;
                let place = file.map_or_else(String::new, |file| format!("; {} has them", file.display()));
                output.show(&answer, || match answer.is_null() {
                    true => "nothing is older: all is kept".to_owned(),
                    false => format!("lines {} to {} are dropped{place}", answer["first"], answer["last"]),
                });
            }
        }
        Ok(())
    }
}

/// Which lines to show.
struct Show {
    after: u64,
    with: Option<String>,
    last: Option<usize>,
    /// In milliseconds since 1970.
    since: Option<u64>,
    follow: bool,
}

/// How often to poll for new lines.
const FOLLOW: Duration = Duration::from_millis(250);

impl Show {
    fn run(mut self, home: &Home, output: Output) -> Result<(), CliError> {
        // If only the last lines are shown: the last ones so far.
        let mut held = VecDeque::new();
        loop {
            let answer = ask(home, &Request::AuditShow { after: self.after, limit: PAGE })?;
            let page: Vec<Line> = serde_json::from_value(answer)?;
            let ended = page.is_empty();
            for line in page {
                self.after = line.number;
                let event: Map<String, Value> = serde_json::from_str(&line.text).unwrap_or_default();
                let at = event.get("at").and_then(Value::as_u64).unwrap_or(0);
                if self.since.is_some_and(|since| at < since)
                    || self.with.as_ref().is_some_and(|with| !line.text.contains(with))
                {
                    continue;
                }
                let text = if output.json { show::json(&as_json(&line, event)) } else { shown(&line, event) };
                match self.last {
                    None => say(&text),
                    Some(last) => {
                        held.push_back(text);
                        if held.len() > last {
                            held.pop_front();
                        }
                    }
                }
            }
            if ended {
                held.drain(..).for_each(|text| say(&text));
                if !self.follow || output::is_closed() {
                    return Ok(());
                }
                self.last = None;
                std::thread::sleep(FOLLOW);
            }
        }
    }
}

/// A line for a program.
fn as_json(line: &Line, mut event: Map<String, Value>) -> Value {
    let at = event.shift_remove("at").and_then(|at| at.as_f64()).unwrap_or(0.0);
    let mut all = Map::new();
    all.insert("number".to_owned(), line.number.into());
    all.insert("at".to_owned(), (at / 1000.0).into());
    // What it is, and its details, which have names of their own.
    all.insert("what".to_owned(), event.shift_remove("what").unwrap_or_default());
    all.insert("about".to_owned(), Value::Object(event));
    all.insert("digest".to_owned(), line.digest.clone().into());
    Value::Object(all)
}

fn verify(home: &Home, output: Output, head: Option<String>, files: &[PathBuf]) -> Result<(), CliError> {
    let files = files.iter().map(std::path::absolute).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let answer = ask(home, &Request::AuditVerify { head, files })?;
    let segments = answer["segments"].as_array().cloned().unwrap_or_default();
    output.show(&answer, || {
        let mut shown = String::new();
        for segment in &segments {
            let (file, joins) = (text(&segment["file"]), segment["joins"] == true);
            let joins = if joins { "" } else { "; the next lines are missing" };
            shown += &format!(
                "{}: lines {} to {}, all as they were written{joins}\n",
                show::line(&file),
                segment["first"],
                segment["last"]
            );
        }
        let first = answer["first"].as_u64().unwrap_or(1);
        let from =
            if first > 1 { format!(", from line {first} on (those before were dropped)") } else { String::new() };
        let lines = show::many_json(&answer["lines"], "line", "lines");
        format!("{shown}{lines}, all as they were written{from}\n{}", text(&answer["head"]))
    });
    match segments.iter().find(|segment| segment["joins"] != true) {
        None => Ok(()),
        Some(segment) => {
            let error = format!("the lines after {} are neither in these files nor in the store", segment["last"]);
            Err(CliError::new(error).hint("name all segments with --file, the oldest first"))
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as text: quoted if it could be read as more than one, or as none.
fn shown_value(value: &Value) -> String {
    let text = text(value);
    let ambiguous = |c: char| c == '"' || c == '=' || c.is_control() || c.is_whitespace();
    if text.is_empty() || text.contains(ambiguous) { format!("{text:?}") } else { show::line(&text).into_owned() }
}

fn shown(line: &Line, mut about: Map<String, Value>) -> String {
    let at = about.shift_remove("at").and_then(|at| at.as_u64()).unwrap_or(0);
    let what = about.shift_remove("what").map_or_else(String::new, |what| text(&what));
    let rest: Vec<String> = about
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{key}={}", shown_value(value)))
        .collect();
    // Times after the year 9999 have no such form.
    let at = at.min(253_402_300_799_999);
    let when = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at));
    format!("{} {when} {what} {}", line.number, rest.join(" "))
}
