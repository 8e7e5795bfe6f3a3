//! `credhost audit`

use std::time::{Duration, UNIX_EPOCH};

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use credhost::show;
use credhost::store::audit::Line;
use serde_json::{Map, Value};

use super::home::ask;
use super::{CliError, Output, say};

/// So many lines are asked for at once.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Print what has happened, the oldest first.
    Show {
        /// Only what comes after this line.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Only what has this in it: an identity's name, "login.refused" …
        #[arg(long)]
        with: Option<String>,
    },
    /// Look whether a line was changed, removed or put elsewhere since it was written. Prints the head: note it down
    /// where nobody who can write to this machine can, and give it the next time.
    Verify {
        /// A head that was noted down: "NUMBER DIGEST".
        #[arg(long)]
        head: Option<String>,
    },
}

impl Audit {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::Show { mut after, with } => loop {
                let answer = ask(home, &Request::AuditShow { after, limit: PAGE })?;
                let page: Vec<Line> = serde_json::from_value(answer)?;
                let Some(last) = page.last() else { return Ok(()) };
                after = last.number;
                for line in page.iter().filter(|line| with.as_ref().is_none_or(|with| line.text.contains(with))) {
                    say(&if output.json { show::json(&serde_json::to_value(line)?) } else { shown(line) });
                }
            },
            Self::Verify { head } => {
                let answer = ask(home, &Request::AuditVerify { head })?;
                output.show(&answer, || {
                    format!("{} lines, all as they were written\n{}", answer["lines"], text(&answer["head"]))
                });
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as it is shown: quoted, if it could be taken for more than one, or for none.
fn shown_value(value: &Value) -> String {
    let text = text(value);
    let ambiguous = |c: char| c == '"' || c == '=' || c.is_control();
    if text.is_empty() || text.contains(ambiguous) { format!("{text:?}") } else { show::line(&text).into_owned() }
}

fn shown(line: &Line) -> String {
    let mut about: Map<String, Value> = serde_json::from_str(&line.text).unwrap_or_default();
    let at = about.shift_remove("at").and_then(|at| at.as_u64()).unwrap_or(0);
    let what = about.shift_remove("what").map_or_else(String::new, |what| text(&what));
    let rest: Vec<String> = about
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{key}={}", shown_value(value)))
        .collect();
    // What comes after the year 9999 has no such form.
    let at = at.min(253_402_300_799_999);
    let when = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at));
    format!("{} {when} {what} {}", line.number, rest.join(" "))
}
