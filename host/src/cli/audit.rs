//! `credhost audit`

use std::path::PathBuf;
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
        /// Segments that were exported, the oldest first: each is verified alone, and whether it goes on where the one before
        /// ends, the last of them with what is kept.
        #[arg(long = "file", value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Write the trail into a file of its own, which can be verified alone.
    Export {
        /// A new file.
        file: PathBuf,
        /// Only what `prune --keep` would drop: "90 days", "100 MiB".
        #[arg(long, value_name = "TIME|SIZE")]
        older: Option<String>,
    },
    /// Drop the oldest lines. What is kept still fits, and says where it begins. `[audit] keep` in credhost.toml does this
    /// by itself.
    Prune {
        /// What is kept: "90 days" what is not older, "100 MiB" the latest lines of that size.
        #[arg(long, value_name = "TIME|SIZE")]
        keep: String,
        /// Write what is dropped into this new file first.
        #[arg(long, value_name = "FILE", conflicts_with = "discard")]
        export: Option<PathBuf>,
        /// Drop it for good.
        #[arg(long)]
        discard: bool,
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
                return Err(CliError::new("where is what is dropped to go?")
                    .hint("--export FILE writes it into a file first; --discard drops it for good"));
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

fn verify(home: &Home, output: Output, head: Option<String>, files: &[PathBuf]) -> Result<(), CliError> {
    let files = files.iter().map(std::path::absolute).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let answer = ask(home, &Request::AuditVerify { head, files })?;
    let segments = answer["segments"].as_array().cloned().unwrap_or_default();
    output.show(&answer, || {
        let mut shown = String::new();
        for segment in &segments {
            let (file, joins) = (text(&segment["file"]), segment["joins"] == true);
            let joins = if joins { "" } else { "; what comes next is missing" };
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
        format!("{shown}{} lines, all as they were written{from}\n{}", answer["lines"], text(&answer["head"]))
    });
    match segments.iter().find(|segment| segment["joins"] != true) {
        None => Ok(()),
        Some(segment) => {
            let error = format!("what comes after line {} is in none of these files, and not kept", segment["last"]);
            Err(CliError::new(error).hint("name all segments with --file, the oldest first"))
        }
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
