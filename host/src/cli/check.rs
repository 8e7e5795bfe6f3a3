//! `credhost check`

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use credhost::dev::check::{Found, check};
use credhost::loader::private::PrivateFolder;
use credhost::loader::vet::{Sections, Vet};

use super::home::table;
use super::{Output, Trouble};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The library. Its methods are called with arguments of every wrong kind, on a store of its own, in this process.
    file: PathBuf,
    /// How often it is replaced by itself.
    #[arg(long, default_value_t = 100, value_name = "TIMES")]
    reloads: usize,
}

impl Check {
    pub(super) fn run(self, output: Output) -> Result<(), Trouble> {
        let place = tempfile(&self.file)?;
        let private = PrivateFolder::new(place.clone())?;
        let progress = |what: &str| {
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K{what} …");
                let _ = std::io::stderr().flush();
            }
        };
        progress("vetting it");
        let vet = Vet::new(std::env::current_exe()?, Duration::from_secs(10));
        let found = private.copy(&self.file).and_then(|copy| vet.vet(&copy, &Sections::new())).and_then(|vetted| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            let mut found = runtime.block_on(check(&self.file, &private, self.reloads, progress))?;
            found.faults.extend(vetted.notes);
            Ok(found)
        });
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        drop(private);
        // What is left there is empty.
        let _ = std::fs::remove_dir_all(place);
        let file = self.file.display();
        let found = found.map_err(|why| Trouble::new(format!("{file} is not good: {why}")))?;
        output.show(&serde_json::json!(found), || shown(&found));
        match found.faults.len() {
            0 => Ok(()),
            1 => Err(Trouble::new(format!("{file} is not good: {}", found.faults[0]))),
            faults => Err(Trouble::new(format!("{file} is not good: {faults} faults, listed above"))),
        }
    }
}

fn tempfile(file: &std::path::Path) -> Result<PathBuf, Trouble> {
    if !file.is_file() {
        return Err(Trouble::new(format!("{} is no file", file.display())).hint("build it: `cargo build`"));
    }
    Ok(std::env::temp_dir().join(format!("credhost-check-{}", std::process::id())))
}

fn shown(found: &Found) -> String {
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let mut rows = vec![
        row("service", found.service.clone()),
        row(
            "odd calls",
            format!("{}: {} refused with an error, {} taken", found.odd_calls, found.refused, found.taken),
        ),
        row("speed", format!("{:.0} calls a second ({})", found.calls_per_second, found.timed)),
        row(
            "replaced",
            format!(
                "{} times, each in {:.1} ms; calls wait for {:.1} ms, {:.1} at the longest",
                found.reloads, found.reload_ms, found.freeze_ms.0, found.freeze_ms.1
            ),
        ),
    ];
    let grown: Vec<String> = found.grown.iter().map(|(what, by)| format!("{by:+} {what}")).collect();
    rows.push(row("left behind", grown.join(", ")));
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
