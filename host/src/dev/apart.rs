//! Runs a check in a process of its own: what a library does to the process that tries it is part of the verdict.
//!
//! The program starts itself again. The child prints on its standard output, one line of JSON each, what it does next, and at
//! last what it has found. If it ends before that, the library has ended it.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::check::Found;
use crate::loader::exit::ended;
use crate::loader::vet::own_stdout;

/// A line that the child prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// What it does next.
    At(String),
    /// What it has found.
    Found(Box<Found>),
    /// Why it could not try the library at all.
    Not(String),
}

/// Runs a program whose `main` calls [`inside`]. `progress` receives each next step.
///
/// # Errors
/// If the library cannot be tried at all, or the program cannot be run.
pub fn run(mut program: Command, mut progress: impl FnMut(&str)) -> Result<Found, String> {
    let mut child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it cannot be tried: {error}"))?;
    let (mut at, mut found) = ("opening it".to_owned(), None);
    let lines = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    for word in lines.map_while(|line| serde_json::from_str(&line).ok()) {
        match word {
            Word::At(next) => {
                progress(&next);
                at = next;
            }
            Word::Found(all) => found = Some(Ok(*all)),
            Word::Not(why) => found = Some(Err(why)),
        }
    }
    let status = child.wait().map_err(|error| format!("it cannot be tried: {error}"))?;
    match found {
        Some(found) if status.success() => found,
        Some(Ok(mut found)) => {
            found.faults.push(format!("it {} after it was stopped", ended(status)));
            Ok(found)
        }
        Some(Err(why)) => Err(why),
        None => {
            let fault = format!("it {} during this step: {at}. In a host, that would end all services", ended(status));
            Ok(Found { faults: vec![fault], ..Found::default() })
        }
    }
}

/// The child's side. `check` receives a function to which it reports each next step.
///
/// # Errors
/// If nobody reads its output.
pub fn inside(check: impl FnOnce(&mut dyn FnMut(&str)) -> Result<Found, String>) -> io::Result<()> {
    // What the library itself prints is discarded.
    let mut out = own_stdout()?;
    let mut say = move |word: &Word| -> io::Result<()> {
        let mut line = serde_json::to_vec(word)?;
        line.push(b'\n');
        out.write_all(&line)
    };
    let found = check(&mut |at| {
        // If nobody reads, writing the last line fails, too.
        let _ = say(&Word::At(at.to_owned()));
    });
    say(&match found {
        Ok(found) => Word::Found(Box::new(found)),
        Err(why) => Word::Not(why),
    })
}
