//! `credhost identity import`

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;

use clap::Args;
use credhost::accounts::Imported;
use credhost::accounts::foreign::{Entry, Format, Person, Reader};
use credhost::config::Home;
use credhost::control::{Request, Secret};
use credhost::show;
use credhost::store::Record;
use serde_json::json;

use super::home::{Progress, ask};
use super::{CliError, Output, say, warn};

/// So many are handed over at once: all of them are written, or none.
const CHUNK: usize = 2000;
/// So many bytes of them, at most: a line of the control protocol has its limit.
const CHUNK_BYTES: usize = 4 << 20;
/// So many whose passwords are hashed at once: some seconds.
const CHUNK_HASHED: usize = 100;
/// So many bytes are looked at for what a file is.
const LOOKED_AT: usize = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file; - for standard input.
    file: PathBuf,
    /// What it is: json, as `export` prints it; htpasswd, with bcrypt hashes (htpasswd -B); filepassworddb, Twisted's, with
    /// passwords in the clear; ldif, of inetOrgPerson with {ARGON2} or {BCRYPT}; shadow. Found out, if nothing is said; but
    /// filepassworddb is to be said.
    #[arg(long, value_name = "FORMAT", value_parser = Format::ALL.map(|(name, _)| name))]
    format: Option<String>,
    /// Put them in the place of those of the same names.
    #[arg(long)]
    replace: bool,
    /// Give each of them the key to their own perspective of this service; any number.
    #[arg(long = "key", value_name = "SERVICE")]
    keys: Vec<String>,
    /// Change nothing; print who would come in, and who would not.
    #[arg(long)]
    dry_run: bool,
}

/// What is handed over at once.
#[derive(Default)]
struct Chunk {
    records: Vec<Record>,
    passwords: BTreeMap<String, Secret>,
    bytes: usize,
}

impl Chunk {
    fn is_full(&self) -> bool {
        self.records.len() >= CHUNK || self.bytes >= CHUNK_BYTES || self.passwords.len() >= CHUNK_HASHED
    }
}

/// An import under way.
struct Importing<'a> {
    import: &'a Import,
    home: &'a Home,
    all: Imported,
    passed: u64,
    chunk: Chunk,
    /// Names that came; in a dry run alone, where nothing else knows that one comes twice.
    names: HashSet<String>,
    list: bool,
}

impl Import {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let (mut reader, size, format) = self.open()?;
        if !self.dry_run {
            home.make()?;
        }
        let list = self.dry_run && !output.json;
        let (all, chunk, names) = (Imported::default(), Chunk::default(), HashSet::new());
        let mut importing = Importing { import: &self, home, all, passed: 0, chunk, names, list };
        let mut progress = Progress::new();
        let mut entries = Reader::new(&mut reader, format);
        while let Some((line, entry)) = entries.next().transpose()? {
            importing.take(line, entry)?;
            let (done, read) = (importing.all.added + importing.all.replaced, entries.bytes());
            progress.show(done, (done * size).checked_div(read).unwrap_or(0));
        }
        importing.hand_over()?;
        drop(progress);
        importing.tell(output)
    }

    /// The file, how long it is (0: not known), and what it is.
    fn open(&self) -> Result<(Box<dyn BufRead>, u64, Format), CliError> {
        let (mut from, size): (Box<dyn Read>, u64) = if self.file.as_os_str() == "-" {
            (Box::new(std::io::stdin()), 0)
        } else {
            let opened =
                File::open(&self.file).map_err(|error| CliError::new(format!("{}: {error}", self.file.display())))?;
            let size = opened.metadata()?.len();
            (Box::new(opened), size)
        };
        let named = self.format.as_deref();
        if let Some((_, format)) = Format::ALL.into_iter().find(|(name, _)| Some(*name) == named) {
            return Ok((Box::new(BufReader::new(from)), size, format));
        }
        let mut start = zeroize::Zeroizing::new(Vec::new());
        from.by_ref().take(LOOKED_AT as u64).read_to_end(&mut start)?;
        let text = String::from_utf8_lossy(&start);
        let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#')).unwrap_or("{");
        let format = Format::of(first).ok_or_else(|| {
            CliError::new(format!("{}: it cannot be seen what kind of file this is", self.file.display())).hint(
                "--format json, htpasswd, filepassworddb, ldif or shadow says it; filepassworddb is Twisted's NAME:PASSWORD",
            )
        })?;
        Ok((Box::new(BufReader::new(Cursor::new(start.to_vec()).chain(from))), size, format))
    }
}

impl Importing<'_> {
    fn take(&mut self, line: usize, entry: Entry) -> Result<(), CliError> {
        match entry {
            Entry::Person(person) => return self.person(line, *person),
            Entry::Passed(why) => {
                self.passed += 1;
                if self.list {
                    say(&format!("line {line}: passed over: {}", show::line(&why)));
                }
            }
            Entry::Wrong(why) => self.all.refuse(&format!("line {line}"), &why),
        }
        Ok(())
    }

    fn person(&mut self, line: usize, Person { mut record, password }: Person) -> Result<(), CliError> {
        for service in &self.import.keys {
            let key = format!("{service}/{}", record.name);
            if !record.keys.contains(&key) {
                record.keys.push(key);
            }
        }
        if self.import.dry_run && !self.names.insert(record.name.clone()) {
            self.all.refuse(&record.name, "it is there twice");
            return Ok(());
        }
        if self.list {
            say(&format!("line {line}: {}", described(&record, password.is_some())));
        }
        let bytes = serde_json::to_string(&record)?.len() + password.as_ref().map_or(0, |password| password.len());
        if self.chunk.bytes + bytes > CHUNK_BYTES
            || password.is_some() && self.chunk.passwords.contains_key(&record.name)
        {
            self.hand_over()?;
        }
        self.chunk.bytes += bytes;
        if let Some(password) = password {
            self.chunk.passwords.insert(record.name.clone(), Secret(password));
        }
        self.chunk.records.push(record);
        if self.chunk.is_full() { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<(), CliError> {
        let Chunk { records, passwords, .. } = std::mem::take(&mut self.chunk);
        if !records.is_empty() {
            let (replace, dry_run) = (self.import.replace, self.import.dry_run);
            let answer = ask(self.home, &Request::IdentityImport { records, passwords, replace, dry_run })?;
            self.all.add(serde_json::from_value(answer)?);
        }
        Ok(())
    }

    fn tell(self, output: Output) -> Result<(), CliError> {
        let mut told = serde_json::to_value(&self.all)?;
        told["passed"] = json!(self.passed);
        told["dry_run"] = json!(self.import.dry_run);
        output.show(&told, || summary(&self.all, self.passed, self.import.dry_run));
        if self.all.refused == 0 {
            return Ok(());
        }
        if !output.json {
            self.all.why.iter().for_each(|why| warn(&format!("  refused: {}", show::line(why))));
        }
        let (count, dry) = (self.all.refused, self.import.dry_run);
        let were = match (count, dry) {
            (1, false) => "was",
            (_, false) => "were",
            (_, true) => "would be",
        };
        let hint = if dry { "nothing was changed" } else { "the others were imported" };
        Err(CliError::new(format!("{count} {were} refused")).hint(hint))
    }
}

fn summary(all: &Imported, passed: u64, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut text = format!("{} {would}added", all.added);
    let mut more = |count: u64, what: &str| {
        if count > 0 {
            text += &format!("\n{count} {what}");
        }
    };
    more(all.replaced, &format!("{would}replaced"));
    more(passed, "passed over: nobody who could log in");
    more(
        all.bcrypt,
        "by a bcrypt hash, which is made anew when they log in by loginPassword; Twisted's own login needs a new password",
    );
    more(all.weak, "with a password that [password] in credhost.toml would not let them choose");
    more(all.unsealed, "without what Twisted's own login needs: it was sealed under another master.key");
    text
}

/// Somebody who would come in.
fn described(record: &Record, in_the_clear: bool) -> String {
    let hash = |hash: &str| if hash.starts_with("$2") { "a bcrypt hash" } else { "an argon2id hash" };
    let mut by: Vec<&str> =
        record.credentials.iter().filter_map(|credential| credential.password.as_deref().map(hash)).collect();
    by.extend(record.credentials.iter().filter(|credential| credential.pubkey.is_some()).map(|_| "a public key"));
    by.extend(record.credentials.iter().filter(|credential| credential.token.is_some()).map(|_| "a token"));
    if in_the_clear {
        by.push("a password, which is hashed");
    }
    let by = if by.is_empty() { "nothing to log in with".to_owned() } else { by.join(", ") };
    let keys = if record.keys.is_empty() { String::new() } else { format!("; keys: {}", record.keys.join(" ")) };
    let disabled = if record.disabled { "; disabled" } else { "" };
    show::line(&format!("{}: {by}{keys}{disabled}", record.name)).into_owned()
}
