//! `credhost identity import`

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;

use clap::Args;
use credhost::accounts::foreign::{Entry, Format, Person, Reader};
use credhost::accounts::{Accounts, Imported};
use credhost::config::Home;
use credhost::control::{self, LibraryStatus, Request, Secret, known};
use credhost::cred::{Name, NameOf};
use credhost::store::Record;
use credhost::{nearest, show};
use serde_json::{Value, json};

use super::home::{Progress, ask, ask_running, cli_error};
use super::{CliError, Output, say, warn};

/// The most identities in one request: all of them are written, or none.
const CHUNK: usize = 2000;
/// The most bytes in one request: a line of the control protocol is limited.
const CHUNK_BYTES: usize = 4 << 20;
/// The most passwords in one request: hashing them takes some seconds.
const CHUNK_HASHED: usize = 100;
/// How many bytes of a file are read to detect its format.
const LOOKED_AT: usize = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file; - for standard input.
    file: PathBuf,
    /// The file's format: json, as `export` prints it; htpasswd with bcrypt hashes (htpasswd -B); Twisted's filepassworddb
    /// with plaintext passwords; ldif of inetOrgPerson with {ARGON2} or {BCRYPT}; shadow. Detected if omitted, except
    /// filepassworddb.
    #[arg(long, value_name = "FORMAT", value_parser = Format::ALL.map(|(name, _)| name))]
    format: Option<String>,
    /// Overwrite existing identities of the same names.
    #[arg(long)]
    replace: bool,
    /// Give each a key to their own perspective of this service; can be repeated.
    #[arg(long = "key", value_name = "SERVICE")]
    keys: Vec<String>,
    /// Change nothing; print who would be added, and who would not.
    #[arg(long)]
    dry_run: bool,
}

/// What one request contains.
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
    /// The names so far, each with its line.
    names: HashMap<String, usize>,
    /// Who would be imported, and how; in a dry run, until the host has refused some of them.
    listed: Vec<(String, String)>,
    only_passwords: bool,
}

impl Import {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let (mut reader, size, format) = self.open()?;
        for service in &self.keys {
            Name::chosen(NameOf::Service, service)?;
        }
        if !self.dry_run {
            home.make()?;
        }
        let (all, chunk, names) = (Imported::default(), Chunk::default(), HashMap::new());
        let only_passwords = format.knows_passwords_only();
        let mut importing =
            Importing { import: &self, home, all, passed: 0, chunk, names, listed: Vec::new(), only_passwords };
        importing.warn_of_keys();
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

    /// Opens the file. Returns it, its size (0: unknown), and its format.
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
        let first = text
            .trim_start_matches('\u{feff}')
            .lines()
            .find(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .unwrap_or("{");
        let format = Format::of(first).ok_or_else(|| {
            CliError::new(format!("{}: the file's format is not clear", self.file.display())).hint(
                "name it with --format: json, htpasswd, filepassworddb, ldif or shadow; filepassworddb is Twisted's NAME:PASSWORD",
            )
        })?;
        Ok((Box::new(BufReader::new(Cursor::new(start.to_vec()).chain(from))), size, format))
    }
}

impl Importing<'_> {
    /// Warns of keys to unknown services: their names may be mistyped.
    fn warn_of_keys(&self) {
        let listed = ask_running(self.home, &Request::ServiceList {}).ok().flatten();
        let libraries: Option<Vec<LibraryStatus>> = listed.and_then(|listed| serde_json::from_value(listed).ok());
        let known = known::services(self.home, libraries.as_deref());
        for service in self.import.keys.iter().filter(|service| !known.contains(*service)) {
            let meant = nearest::meant(service, &known);
            warn(&format!(
                "credhost: warning: there is no service {service:?} yet: its keys have no effect until there is one{meant}"
            ));
        }
    }

    fn take(&mut self, line: usize, entry: Entry) -> Result<(), CliError> {
        match entry {
            Entry::Person(person) => return self.person(line, *person),
            Entry::Passed(why) => {
                self.passed += 1;
                if self.import.dry_run {
                    self.listed.push((String::new(), format!("line {line}: skipped: {}", show::line(&why))));
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
        if let Some(first) = self.names.get(&record.name) {
            self.all
                .refuse(&format!("line {line}: {}", record.name), &format!("it is there twice; line {first} counts"));
            return Ok(());
        }
        self.names.insert(record.name.clone(), line);
        let bytes = serde_json::to_string(&record)?.len() + password.as_ref().map_or(0, |password| password.len());
        if bytes > CHUNK_BYTES {
            let why = format!("it has more than {} MiB", CHUNK_BYTES >> 20);
            self.all.refuse(&format!("line {line}: {}", record.name), &why);
            return Ok(());
        }
        if self.import.dry_run {
            let what = format!("line {line}: {}", described(&record, password.is_some()));
            self.listed.push((record.name.clone(), what));
        }
        if self.chunk.bytes + bytes > CHUNK_BYTES {
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
        if records.is_empty() {
            return Ok(());
        }
        let (replace, only_passwords, dry_run) = (self.import.replace, self.only_passwords, self.import.dry_run);
        let request = Request::IdentityImport { records, passwords, replace, only_passwords, dry_run };
        let answer = if dry_run { look(self.home, &request)? } else { ask(self.home, &request)? };
        let mut done: Imported = serde_json::from_value(answer)?;
        let refused: HashSet<String> =
            done.why.iter().filter_map(|why| why.split_once(": ")).map(|(name, _)| name.to_owned()).collect();
        for why in &mut done.why {
            // Add the line of the entry.
            if let Some(line) = why.split_once(": ").and_then(|(name, _)| self.names.get(name)) {
                *why = format!("line {line}: {why}");
            }
        }
        self.listed.retain(|(name, _)| !refused.contains(name));
        self.all.add(done);
        Ok(())
    }

    fn tell(self, output: Output) -> Result<(), CliError> {
        let mut told = serde_json::to_value(&self.all)?;
        told["passed"] = json!(self.passed);
        if self.import.dry_run {
            told["would"] = json!(self.listed.iter().map(|(_, what)| what).collect::<Vec<_>>());
        }
        if !output.json {
            self.listed.iter().for_each(|(_, what)| say(what));
        }
        told["dry_run"] = json!(self.import.dry_run);
        output.show(&told, || summary(&self.all, self.passed, self.import.dry_run));
        if self.all.refused == 0 {
            return Ok(());
        }
        if !output.json {
            self.all.why.iter().for_each(|why| warn(&format!("  refused: {}", show::line(why))));
            if let Some(more) = self.all.refused.checked_sub(self.all.why.len() as u64).filter(|more| *more > 0) {
                warn(&format!("  and {more} more"));
            }
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
    more(passed, if passed == 1 { "skipped: it cannot log in" } else { "skipped: they cannot log in" });
    more(
        all.bcrypt,
        "with a bcrypt hash, which the next loginPassword replaces; Twisted's own login needs a new password",
    );
    more(all.weak, "with a password that [password] in credhost.toml would not let them choose");
    more(all.unsealed, "without what Twisted's own login needs: it was sealed under another master.key");
    text
}

/// Performs a dry run: into an empty store if nothing was ever stored.
fn look(home: &Home, request: &Request) -> Result<Value, CliError> {
    if home.store().exists() || home.config().exists() || home.control().exists() {
        return ask(home, request);
    }
    let accounts = Accounts::empty(home);
    control::perform(request, &accounts, None, &mut |_, _| {}).map_err(cli_error)
}

/// Describes an identity that would be imported.
fn described(record: &Record, in_the_clear: bool) -> String {
    let hash = |hash: &str| match hash.get(..2) {
        Some("$2") => "a bcrypt hash",
        _ => "an argon2id hash",
    };
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
