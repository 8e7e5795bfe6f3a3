//! `credhost check`

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use credhost::config::Home;
use credhost::dev::apart;
use credhost::dev::check::{Found, check};

use super::home::table;
use super::trial::Trial;
use super::{CliError, Output, log};

/// How long the library may take for each step of the vetting.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The library. Its methods are called with every wrong kind of argument, in a separate process with a separate store;
    /// with the configuration of the home folder, if there is one.
    file: PathBuf,
    /// Number of reloads to run.
    #[arg(long, default_value_t = 100, value_name = "TIMES")]
    reloads: usize,
    /// This is that process.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Check {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let trial = Trial::new(home)?;
        if self.inside {
            return self.inside(trial);
        }
        progress("vetting it");
        let vetted = trial.vet(&self.file, PATIENCE).inspect_err(|_| no_progress())?;
        let mut program = Command::new(std::env::current_exe()?);
        program.arg("--home").arg(home.path()).arg("check").arg(&self.file).arg("--inside");
        program.arg("--reloads").arg(self.reloads.to_string());
        let found = apart::run(program, progress);
        no_progress();
        let file = self.file.display();
        let mut found = found.map_err(|why| CliError::new(format!("{file} is not good: {why}")))?;
        found.service = vetted.manifest.service;
        found.faults.extend(vetted.notes);
        output.show(&serde_json::json!(found), || shown(&found));
        match found.faults.len() {
            0 => Ok(()),
            1 => Err(CliError::new(format!("{file} is not good: {}", found.faults[0]))),
            faults => Err(CliError::new(format!("{file} has {faults} faults, listed above"))),
        }
    }

    fn inside(self, trial: Trial) -> Result<(), CliError> {
        // The log shows panics of the library, with file and line.
        let _log = log::start();
        let (sections, allowed, program) = (Arc::new(trial.sections), trial.allowed, std::env::current_exe()?);
        apart::inside(|progress| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(check(&self.file, &trial.private, &sections, self.reloads, (&program, &allowed), progress))
        })?;
        Ok(())
    }
}

fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what} …");
        let _ = std::io::stderr().flush();
    }
}

fn no_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn shown(found: &Found) -> String {
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let mut rows = vec![
        row("service", found.service.clone()),
        row(
            "odd calls",
            format!("{}: {} refused with an error, {} accepted", found.odd_calls, found.refused, found.taken),
        ),
    ];
    // Steps that were not reached are not shown.
    if !found.timed.is_empty() {
        rows.push(row("speed", format!("{:.0} calls a second ({})", found.calls_per_second, found.timed)));
    }
    if found.reload_ms > 0.0 {
        rows.push(row(
            "replaced",
            format!(
                "{} times, each in {:.1} ms; calls wait for {:.1} ms, {:.1} at the longest",
                found.reloads, found.reload_ms, found.freeze_ms.0, found.freeze_ms.1
            ),
        ));
    }
    rows.extend(found.elsewhere.iter().map(|how| row("elsewhere", how.clone())));
    if !found.grown.is_empty() {
        let grown: Vec<String> = found.grown.iter().map(|(what, by)| format!("{by:+} {what}")).collect();
        rows.push(row("left behind", grown.join(", ")));
    }
    if !found.waiting.is_empty() {
        rows.push(row("waits", found.waiting.join(", ")));
    }
    rows.extend(found.notes.iter().map(|note| row("note", note.clone())));
    rows.extend(found.faults.iter().map(|fault| row("FAULT", fault.clone())));
    if found.faults.is_empty() {
        rows.push(row("verdict", "good".to_owned()));
    }
    table(&rows)
}
