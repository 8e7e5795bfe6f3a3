//! `credhost identity import`

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use credhost::accounts::Imported;
use credhost::config::Home;
use credhost::control::Request;
use credhost::store::Record;

use super::home::{Progress, ask};
use super::{CliError, Output, say};

/// So many are handed over at once: all of them are written, or none.
const CHUNK: usize = 2000;
/// So many bytes of them, at most: a line of the control protocol has its limit.
const CHUNK_BYTES: usize = 4 << 20;

pub(super) fn import(home: &Home, output: Output, file: &Path, replace: bool) -> Result<(), CliError> {
    let mut size = 0;
    let reader: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let opened = File::open(file).map_err(|error| {
            CliError::new(format!("{}: {error}", file.display()))
                .hint("it is a file that `credhost identity export` has printed: one record of JSON a line")
        })?;
        size = opened.metadata()?.len();
        Box::new(BufReader::new(opened))
    };
    home.make()?;
    let (mut all, mut chunk, mut read) = (Imported::default(), Vec::with_capacity(CHUNK), 0u64);
    let (mut progress, mut size_of_chunk) = (Progress::new(), 0);
    let hand_over = |chunk: &mut Vec<Record>, all: &mut Imported| -> Result<(), CliError> {
        if !chunk.is_empty() {
            let answer = ask(home, &Request::IdentityImport { records: std::mem::take(chunk), replace })?;
            all.add(serde_json::from_value(answer)?);
        }
        Ok(())
    };
    for (index, line) in reader.lines().enumerate() {
        let line = line?;
        read += line.len() as u64 + 1;
        if size_of_chunk + line.len() > CHUNK_BYTES {
            hand_over(&mut chunk, &mut all)?;
            size_of_chunk = 0;
        }
        size_of_chunk += line.len();
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Record>(&line) {
            Ok(record) => chunk.push(record),
            Err(error) => all.refuse(&format!("line {}", index + 1), &error.to_string()),
        }
        if chunk.len() == CHUNK {
            hand_over(&mut chunk, &mut all)?;
            size_of_chunk = 0;
            progress
                .show(all.added + all.replaced, if size == 0 { 0 } else { (all.added + all.replaced) * size / read });
        }
    }
    hand_over(&mut chunk, &mut all)?;
    drop(progress);
    let told = serde_json::to_value(&all)?;
    output.show(&told, || {
        let mut text = format!("{} added", all.added);
        if all.replaced > 0 {
            text += &format!(", {} replaced", all.replaced);
        }
        if all.unsealed > 0 {
            text += &format!(
                "; {} without what Twisted's own login needs: it was sealed under another master.key",
                all.unsealed
            );
        }
        text
    });
    if all.refused > 0 {
        if !output.json {
            all.why.iter().for_each(|why| say(&format!("  refused: {why}")));
        }
        return Err(CliError::new(format!("{} were refused", all.refused)).hint("the others were imported"));
    }
    Ok(())
}
