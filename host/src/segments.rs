//! Segments of the audit trail: verified completely or in parts, exported into their own files, and dropped when they
//! are old. So the trail does not grow forever, and nobody can remove a line from it unnoticed.
//!
//! A segment is a file of JSON lines: first its beginning (the line before its first), then its lines as they are
//! stored, then its end (its last line), with a seal over both. It can be verified alone, with the store's secret. If
//! two segments follow each other, the end of one is the beginning of the other.
//!
//! Only verified lines are dropped. Otherwise someone who can write to the store could have changed lines dropped
//! unnoticed.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cred::StoreSecret;
use crate::store::audit::{Broken, Event, Head, Line, Verifier, segment_seal};
use crate::store::{Store, StoreError, Write, wait};

/// The number of lines that are read, or dropped, at once.
const PAGE: usize = 5000;
/// The size of a line beyond its text and digest, in bytes.
const LINE: u64 = 16;
/// The longest line of a segment's file, in bytes. Texts are bounded; this limit is for files that are not segments.
const LONGEST: u64 = 1 << 20;

/// The part of the trail that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Lines that are not older than this.
    Time(Duration),
    /// The latest lines that fit into this many bytes.
    Bytes(u64),
}

impl Keep {
    /// Parses "90 days", "12 h", "100 MiB" …
    ///
    /// # Errors
    /// If it is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = text[digits..].trim();
        let bytes =
            [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)].into_iter().find(|(name, _)| *name == unit);
        let parsed = match (bytes, text[..digits].parse::<u64>().ok()) {
            (Some((_, size)), Some(number)) => number.checked_mul(size).map(Self::Bytes),
            _ => humantime::parse_duration(text).ok().map(Self::Time),
        };
        let least = Duration::from_secs(60);
        match parsed {
            Some(Self::Time(time)) if time < least => Err(format!("{text:?} is too short: keep a minute at least")),
            Some(keep) => Ok(keep),
            None => Err(format!("{text:?} is neither a time nor a size: \"90 days\", \"12 h\", \"100 MiB\"")),
        }
    }
}

/// Why a segment or the trail is invalid, or an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The lines do not form a chain.
    #[error("the audit trail is broken: {0}")]
    Broken(#[from] Broken),
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The file is not a segment of this host, or was changed since it was written.
    #[error("{path}, line {line}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// The line of the file.
        line: u64,
        /// The fault.
        what: String,
    },
    /// A head is older than all lines that are kept.
    #[error("line {0} was dropped: the trail no longer contains it")]
    Dropped(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The range of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covers {
    /// The line before its first.
    pub after: String,
    /// Its first line's number.
    pub first: u64,
    /// Its last line's number.
    pub last: u64,
    /// Its last line's number and digest.
    pub end: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// The kind of file, and its format.
    segment: String,
    /// The line before the first.
    after: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// The last line.
    end: String,
    /// The seal over the beginning and the end.
    seal: String,
}

/// The content of the first line of a segment's file.
const FORMAT: &str = "credhost audit trail, 1";

/// Only one operation drops or exports lines at a time: to another one, dropped lines would look like lines that
/// someone removed.
static ALONE: Mutex<()> = Mutex::new(());

/// Reads all lines after this one, from the oldest. `each` returns whether to continue.
fn walk_from(
    store: &dyn Store,
    anchor: &Head,
    mut each: impl FnMut(Line) -> Result<bool, SegmentError>,
) -> Result<(), SegmentError> {
    let mut after = anchor.number;
    loop {
        let page = wait(|done| store.audit(after, PAGE, done))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        for line in page {
            if !each(line)? {
                return Ok(());
            }
        }
    }
}

/// Verifies the lines that are kept, against recorded heads. Returns the trail's beginning and its head.
///
/// # Errors
/// If something does not match.
pub fn verify(
    store: &dyn Store,
    heads: &[Option<Head>],
    progress: &mut dyn FnMut(u64),
) -> Result<(Head, Head), SegmentError> {
    loop {
        let anchor = wait(|done| store.anchor(done))?;
        for head in heads.iter().flatten().filter(|head| head.number <= anchor.number) {
            if head.number < anchor.number {
                return Err(SegmentError::Dropped(head.number));
            }
            if head.digest != anchor.digest {
                return Err(Broken::Head(head.number).into());
            }
        }
        let mut verifiers: Vec<Verifier<'_>> =
            heads.iter().map(|head| Verifier::new(store.secret(), anchor.clone(), head.clone())).collect();
        let walked = walk_from(store, &anchor, |line| {
            verifiers.iter_mut().try_for_each(|verifier| verifier.line(&line))?;
            if line.number.is_multiple_of(PAGE as u64) {
                progress(line.number);
            }
            Ok(true)
        });
        // Lines were dropped meanwhile.
        if wait(|done| store.anchor(done))? != anchor {
            continue;
        }
        walked?;
        let mut head = anchor.clone();
        for verifier in verifiers {
            head = verifier.end()?;
        }
        return Ok((anchor, head));
    }
}

/// Returns the last line that need not be kept, if there is one. The newest line is always kept. `now` is in
/// milliseconds since 1970. The whole trail is verified, so that changed lines have no influence.
///
/// # Errors
/// If the store cannot be read, or the trail is invalid.
pub fn dispensable(store: &dyn Store, keep: Keep, now: u64) -> Result<Option<Head>, SegmentError> {
    let size = |line: &Line| (line.text.len() + line.digest.len()) as u64 + LINE;
    let at = |line: &Line| {
        let about: serde_json::Value = serde_json::from_str(&line.text).unwrap_or_default();
        about["at"].as_u64().unwrap_or(0)
    };
    let anchor = wait(|done| store.anchor(done))?;
    let (mut all, mut newest) = (0, 0);
    let mut verifier = Verifier::new(store.secret(), anchor.clone(), None);
    walk_from(store, &anchor, |line| {
        verifier.line(&line)?;
        (all, newest) = (all + size(&line), line.number);
        Ok(true)
    })?;
    let mut through = None;
    let mut verifier = Verifier::new(store.secret(), anchor.clone(), None);
    walk_from(store, &anchor, |line| {
        verifier.line(&line)?;
        let goes = match keep {
            Keep::Time(time) => at(&line) < now.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            Keep::Bytes(bytes) => {
                let goes = all > bytes;
                all = all.saturating_sub(size(&line));
                goes
            }
        };
        let goes = goes && line.number < newest;
        if goes {
            through = Some(Head { number: line.number, digest: line.digest });
        }
        Ok(goes)
    })?;
    Ok(through)
}

/// Exports the lines that are kept, up to and including this one, into a new file, completely or not at all.
///
/// # Errors
/// If the file exists already or cannot be written, or there is no such line.
pub fn export(store: &dyn Store, to: &Path, through: u64) -> Result<Covers, SegmentError> {
    let _alone = ALONE.lock();
    write_new(store, to, through)
}

fn write_new(store: &dyn Store, to: &Path, through: u64) -> Result<Covers, SegmentError> {
    let io = |error| SegmentError::Io { path: to.to_owned(), error };
    if to.exists() {
        return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "it exists already")));
    }
    let new = PathBuf::from(format!("{}.new", to.display()));
    let written = write(store, &new, through);
    let done = written.and_then(|covers| {
        // A file that was created meanwhile is not overwritten.
        fs::hard_link(&new, to).map_err(io)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(covers)
    });
    let _ = fs::remove_file(&new);
    done
}

fn write(store: &dyn Store, to: &Path, through: u64) -> Result<Covers, SegmentError> {
    let io = |error| SegmentError::Io { path: to.to_owned(), error };
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to).map_err(io)?;
    let mut out = BufWriter::new(file);
    let json = |error: serde_json::Error| io(error.into());
    let secret = store.secret();
    let after = wait(|done| store.anchor(done))?;
    let begin = Begin { segment: FORMAT.to_owned(), after: after.to_string() };
    writeln!(out, "{}", serde_json::to_string(&begin).map_err(json)?).map_err(io)?;
    let mut verifier = Verifier::new(secret, after.clone(), None);
    let mut last = after.number;
    walk_from(store, &after, |line| {
        if line.number > through {
            return Ok(false);
        }
        // Only valid lines are sealed.
        verifier.line(&line)?;
        last = line.number;
        writeln!(out, "{}", serde_json::to_string(&line).map_err(json)?).map_err(io)?;
        Ok(line.number < through)
    })?;
    if last != through {
        return Err(Broken::Short(last, through).into());
    }
    let end = verifier.end()?;
    let sealed = End { end: end.to_string(), seal: segment_seal(secret, &after, &end) };
    writeln!(out, "{}", serde_json::to_string(&sealed).map_err(json)?).map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(Covers { first: after.number + 1, after: after.to_string(), last: end.number, end: end.to_string() })
}

/// Verifies a segment's file alone.
///
/// # Errors
/// If it is invalid: the reason, and the line.
pub fn verify_file(secret: &StoreSecret, path: &Path) -> Result<Covers, SegmentError> {
    let io = |error| SegmentError::Io { path: path.to_owned(), error };
    let wrong = |line: u64, what: String| SegmentError::File { path: path.to_owned(), line, what };
    let mut file = BufReader::new(fs::File::open(path).map_err(io)?);
    let (mut number, mut text) = (0u64, String::new());
    let mut next = |text: &mut String| -> Result<u64, SegmentError> {
        text.clear();
        number += 1;
        let read = io::Read::take(&mut file, LONGEST).read_line(text).map_err(io)?;
        if read == 0 {
            return Err(wrong(
                number,
                "the file ends here, without the segment's sealed end: it was cut off".to_owned(),
            ));
        }
        Ok(number)
    };
    let at = next(&mut text)?;
    let begin: Begin = serde_json::from_str(&text)
        .ok()
        .filter(|begin: &Begin| begin.segment == FORMAT)
        .ok_or_else(|| wrong(at, "this is not a segment of an audit trail".to_owned()))?;
    let seal =
        |at: u64| wrong(at, "the seal does not match: the segment is from another host, or was changed".to_owned());
    let after = Head::parse(&begin.after).ok_or_else(|| seal(at))?;
    let mut verifier = Verifier::new(secret, after.clone(), None);
    loop {
        let at = next(&mut text)?;
        if let Ok(sealed) = serde_json::from_str::<End>(&text) {
            let end = verifier.end().map_err(|broken| wrong(at, broken.to_string()))?;
            if sealed.seal != segment_seal(secret, &after, &end) || sealed.end != end.to_string() {
                return Err(seal(at));
            }
            if end.number == after.number {
                return Err(wrong(at, "there is no line in it".to_owned()));
            }
            if next(&mut text).is_ok() {
                return Err(wrong(at + 1, "there is more after the segment's end".to_owned()));
            }
            let first = after.number + 1;
            return Ok(Covers { first, after: after.to_string(), last: end.number, end: end.to_string() });
        }
        let line: Line = serde_json::from_str(&text)
            .map_err(|error| wrong(at, format!("this is not a line of a trail: {error}")))?;
        verifier.line(&line).map_err(|broken| wrong(at, broken.to_string()))?;
    }
}

/// Drops all lines up to and including this one. The trail then begins after it, and records this. `by` is the actor.
fn drop_through(store: &dyn Store, through: &Head, by: &str, file: Option<&Path>) -> Result<(), SegmentError> {
    let anchor = wait(|done| store.anchor(done))?;
    let mut verifier = Verifier::new(store.secret(), anchor.clone(), None);
    let file = file.map(|file| file.display().to_string());
    let event = Event::new("audit.pruned").with("by", by).with("first", anchor.number + 1).with("last", through.number);
    // Written together with the first dropped lines: if the rest fails, the event names too many lines rather than too
    // few.
    let mut event = Some(event.with("file", file));
    let mut at = anchor.number;
    while at < through.number {
        // Not in a single commit, since others write, too.
        let mut page = wait(|done| store.audit(at, PAGE, done))?;
        page.retain(|line| line.number <= through.number);
        page.iter().try_for_each(|line| verifier.line(line))?;
        let Some(last) = page.pop() else { return Err(Broken::Short(at, through.number).into()) };
        at = last.number;
        if at == through.number && last.digest != through.digest {
            return Err(Broken::Head(at).into());
        }
        let mut writes: Vec<Write> = event.take().map(Write::Audit).into_iter().collect();
        writes.push(Write::Prune { through: at, digest: last.digest });
        wait(|done| store.commit(writes, done))?;
    }
    Ok(())
}

/// The dropped lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The first line's number.
    pub first: u64,
    /// The last line's number.
    pub last: u64,
    /// The file with these lines, if one was requested.
    pub file: Option<PathBuf>,
}

/// The destination of dropped lines.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'p> {
    /// None.
    Nothing,
    /// A new file with this name.
    File(&'p Path),
    /// A new file in this folder, with the lines' numbers in its name.
    Folder(&'p Path),
}

/// Drops the lines that need not be kept. Returns which ones.
///
/// # Errors
/// If the trail is invalid: nothing is dropped then. If a file or the store cannot be written: lines that cannot be
/// written into the file are kept.
pub fn prune(
    store: &dyn Store,
    keep: Keep,
    into: Destination<'_>,
    by: &str,
    now: u64,
) -> Result<Option<Pruned>, SegmentError> {
    let _alone = ALONE.lock();
    let Some(through) = dispensable(store, keep, now)? else { return Ok(None) };
    let (first, last) = (wait(|done| store.anchor(done))?.number + 1, through.number);
    let file = match into {
        Destination::Nothing => None,
        Destination::File(file) => {
            write_new(store, file, last)?;
            Some(file.to_owned())
        }
        Destination::Folder(folder) => {
            let first = match begun(store, folder, first, last)? {
                Some((file, end)) => {
                    drop_through(store, &end, by, Some(&file))?;
                    if end.number == last {
                        return Ok(Some(Pruned { first, last, file: Some(file) }));
                    }
                    end.number + 1
                }
                None => first,
            };
            Some(archive(store, folder, first, last)?)
        }
    };
    drop_through(store, &through, by, file.as_deref())?;
    Ok(Some(Pruned { first, last, file }))
}

/// Finds a segment in this folder that an interrupted prune left: some of its lines were dropped, and others are still
/// in the store. Returns it with its last line, which is not after `last`. The rest of its lines are dropped first, so
/// that no line is in two segments.
fn begun(store: &dyn Store, folder: &Path, first: u64, last: u64) -> Result<Option<(PathBuf, Head)>, SegmentError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SegmentError::Io { path: folder.to_owned(), error }),
    };
    let has_both = |file: &Path| {
        let numbers = file.file_name()?.to_str()?.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
        let (begin, end) = numbers.split_once('-')?;
        let (begin, end) = (begin.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
        (begin < first && first <= end && end <= last).then_some(())
    };
    for file in entries.flatten().map(|entry| entry.path()).filter(|file| has_both(file).is_some()) {
        // Other files with such a name are ignored.
        if let Ok(covers) = verify_file(store.secret(), &file)
            && covers.first < first
            && first <= covers.last
            && covers.last <= last
            && let Some(end) = Head::parse(&covers.end)
            // If the store was restored, it may have had other lines since.
            && wait(|done| store.audit(end.number - 1, 1, done))?.first().is_some_and(|line| line.digest == end.digest)
        {
            return Ok(Some((file, end)));
        }
    }
    Ok(None)
}

fn archive(store: &dyn Store, folder: &Path, first: u64, last: u64) -> Result<PathBuf, SegmentError> {
    use std::os::unix::fs::DirBuilderExt;
    let io = |path: &Path, error| SegmentError::Io { path: path.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| io(folder, error))?;
    let file = folder.join(format!("audit-{first:010}-{last:010}.jsonl"));
    if file.exists() {
        // It was written, but its lines were not dropped. It is written again if it is incomplete.
        match verify_file(store.secret(), &file) {
            Ok(covers) if (covers.first, covers.last) == (first, last) => return Ok(file),
            _ => fs::remove_file(&file).map_err(|error| io(&file, error))?,
        }
    }
    write_new(store, &file, last)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
