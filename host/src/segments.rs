//! Segments of the audit trail: verified whole or in parts, written into files of their own, and dropped when they are
//! old, so that the trail does not grow for ever and nobody can take a line out of it unnoticed.
//!
//! A segment is a file of JSON lines: first where it begins (the line before its first, sealed), then its lines as they
//! are kept, then where it ends (its last line, sealed). It is verified alone, with the store's secret; of two segments
//! that follow each other, the end of one is the beginning of the other.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cred::StoreSecret;
use crate::store::audit::{Broken, Edge, Event, Head, Line, Verifier};
use crate::store::{Store, StoreError, Write, wait};

/// So many lines are looked at, or dropped, at once.
const PAGE: usize = 5000;
/// What a line takes beyond its text and digest, in bytes.
const LINE: u64 = 16;
/// The longest line of a segment's file, in bytes. Texts are bounded; this is for files that are none.
const LONGEST: u64 = 1 << 20;

/// How much of the trail is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Lines that are not older.
    Time(Duration),
    /// The latest lines, as many as take so many bytes.
    Bytes(u64),
}

impl Keep {
    /// Reads "90 days", "12 h", "100 MiB" …
    ///
    /// # Errors
    /// What is wrong with it.
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

/// Why a segment, or the trail, is not as it was written; or why nothing could be done with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The lines do not fit.
    #[error("the audit trail does not fit: {0}")]
    Broken(#[from] Broken),
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is none that this has written, or was changed since.
    #[error("{path}, line {line}: {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// Which line of the file.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// A head is older than all that is kept.
    #[error("line {0} is older than what is kept of the trail: it was dropped")]
    Dropped(u64),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a segment covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covers {
    /// The line before its first.
    pub after: String,
    /// Its first line's number.
    pub first: u64,
    /// Its last line's number.
    pub last: u64,
    /// Its last line, and its digest.
    pub end: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// What it is, and which format.
    segment: String,
    /// The line before the first, sealed.
    after: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// The last line, sealed.
    end: String,
}

/// The first line of a segment's file says this.
const FORMAT: &str = "credhost audit trail, 1";

/// Walks all lines that are kept, from the oldest; `each` says whether to go on. Answers with what stands before them.
fn walk(store: &dyn Store, mut each: impl FnMut(Line) -> Result<bool, SegmentError>) -> Result<Head, SegmentError> {
    let anchor = wait(|done| store.anchor(done))?;
    let mut after = anchor.number;
    loop {
        let page = wait(|done| store.audit(after, PAGE, done))?;
        let Some(last) = page.last() else { return Ok(anchor) };
        after = last.number;
        for line in page {
            if !each(line)? {
                return Ok(anchor);
            }
        }
    }
}

/// Verifies what is kept of the trail, against heads that were noted down. Answers with its beginning and its head.
///
/// # Errors
/// What does not fit.
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
        let walked = walk(store, |line| {
            verifiers.iter_mut().try_for_each(|verifier| verifier.line(&line))?;
            if line.number.is_multiple_of(PAGE as u64) {
                progress(line.number);
            }
            Ok(true)
        });
        // Some of it was dropped meanwhile.
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

/// The last line that need not be kept any more, if there is one. The newest line always is. `now` is in milliseconds since
/// 1970.
///
/// # Errors
/// When the store cannot be read.
pub fn dispensable(store: &dyn Store, keep: Keep, now: u64) -> Result<Option<u64>, SegmentError> {
    let size = |line: &Line| (line.text.len() + line.digest.len()) as u64 + LINE;
    let at = |line: &Line| {
        let about: serde_json::Value = serde_json::from_str(&line.text).unwrap_or_default();
        about["at"].as_u64().unwrap_or(0)
    };
    let (mut all, mut newest) = (0, 0);
    walk(store, |line| {
        (all, newest) = (all + size(&line), line.number);
        Ok(true)
    })?;
    let mut through = None;
    walk(store, |line| {
        let goes = match keep {
            Keep::Time(time) => at(&line) < now.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            Keep::Bytes(bytes) => {
                let goes = all > bytes;
                all -= size(&line);
                goes
            }
        };
        let goes = goes && line.number < newest;
        if goes {
            through = Some(line.number);
        }
        Ok(goes)
    })?;
    Ok(through)
}

/// Writes what is kept, up to and with this line, into a new file: whole, or not at all.
///
/// # Errors
/// When it is there already or cannot be written, or there is no such line.
pub fn export(store: &dyn Store, to: &Path, through: u64) -> Result<Covers, SegmentError> {
    let io = |error| SegmentError::Io { path: to.to_owned(), error };
    if to.exists() {
        return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "it is there already")));
    }
    let new = PathBuf::from(format!("{}.new", to.display()));
    let written = write(store, &new, through);
    let done = written.and_then(|covers| {
        // Not over a file that has come meanwhile.
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
    let begin = Begin { segment: FORMAT.to_owned(), after: after.sealed(Edge::Segment, secret) };
    writeln!(out, "{}", serde_json::to_string(&begin).map_err(json)?).map_err(io)?;
    let mut verifier = Verifier::new(secret, after.clone(), None);
    let mut last = after.number;
    walk(store, |line| {
        if line.number > through {
            return Ok(false);
        }
        // What does not fit is not given a seal.
        verifier.line(&line)?;
        last = line.number;
        writeln!(out, "{}", serde_json::to_string(&line).map_err(json)?).map_err(io)?;
        Ok(line.number < through)
    })?;
    if last != through {
        return Err(Broken::Short(last, through).into());
    }
    let end = verifier.end()?;
    let sealed = End { end: end.sealed(Edge::Segment, secret) };
    writeln!(out, "{}", serde_json::to_string(&sealed).map_err(json)?).map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(Covers { first: after.number + 1, after: after.to_string(), last: end.number, end: end.to_string() })
}

/// Verifies a segment's file alone.
///
/// # Errors
/// What is wrong with it, and in which line.
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
                "it ends here, but a segment ends with its sealed end: it was cut off".to_owned(),
            ));
        }
        Ok(number)
    };
    let at = next(&mut text)?;
    let begin: Begin = serde_json::from_str(&text)
        .ok()
        .filter(|begin: &Begin| begin.segment == FORMAT)
        .ok_or_else(|| wrong(at, "this is no segment of an audit trail".to_owned()))?;
    let seal = |at: u64| wrong(at, "the seal does not fit: it is another host's, or was changed".to_owned());
    let after = Head::unsealed(&begin.after, Edge::Segment, secret).ok_or_else(|| seal(at))?;
    let mut verifier = Verifier::new(secret, after.clone(), None);
    loop {
        let at = next(&mut text)?;
        if let Ok(end) = serde_json::from_str::<End>(&text) {
            let sealed = Head::unsealed(&end.end, Edge::Segment, secret).ok_or_else(|| seal(at))?;
            let end = verifier.end().map_err(|broken| wrong(at, broken.to_string()))?;
            if end != sealed {
                return Err(wrong(
                    at,
                    format!("line {} is its last, but line {end} was written as such", sealed.number),
                ));
            }
            if next(&mut text).is_ok() {
                return Err(wrong(at + 1, "there is more behind the segment's end".to_owned()));
            }
            let first = after.number + 1;
            return Ok(Covers { first, after: after.to_string(), last: end.number, end: end.to_string() });
        }
        let line: Line =
            serde_json::from_str(&text).map_err(|error| wrong(at, format!("this is no line of a trail: {error}")))?;
        verifier.line(&line).map_err(|broken| wrong(at, broken.to_string()))?;
    }
}

/// Drops all up to and with this line. What is kept begins behind it from then on, and says so; `by` is who wants it.
///
/// # Errors
/// When the store cannot be written: what was dropped by then is, and the rest is kept.
pub fn drop_through(store: &dyn Store, through: u64, by: &str, file: Option<&Path>) -> Result<(), SegmentError> {
    let first = wait(|done| store.anchor(done))?.number + 1;
    let mut at = first - 1;
    while at < through {
        // Not all in one: others write, too.
        at = through.min(at + PAGE as u64);
        let mut writes = vec![Write::Prune { through: at }];
        if at == through {
            let file = file.map(|file| file.display().to_string());
            let event = Event::new("audit.pruned").with("by", by).with("first", first).with("last", through);
            writes.push(Write::Audit(event.with("file", file)));
        }
        wait(|done| store.commit(writes, done))?;
    }
    Ok(())
}

/// Drops what need not be kept, into a file in the folder `archive` if there is one. Answers with what was dropped.
///
/// # Errors
/// As [`export`] and [`drop_through`]. What cannot be written into the archive is kept.
pub fn prune(
    store: &dyn Store,
    keep: Keep,
    archive: Option<&Path>,
    by: &str,
    now: u64,
) -> Result<Option<(u64, u64, Option<PathBuf>)>, SegmentError> {
    let Some(through) = dispensable(store, keep, now)? else { return Ok(None) };
    let first = wait(|done| store.anchor(done))?.number + 1;
    let file = archive.map(|folder| folder.join(format!("audit-{first:010}-{through:010}.jsonl")));
    if let (Some(folder), Some(file)) = (archive, &file) {
        use std::os::unix::fs::DirBuilderExt;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| SegmentError::Io { path: folder.to_owned(), error })?;
        if file.exists() {
            // It was written, and then could not be dropped. Written anew, if it is not whole.
            match verify_file(store.secret(), file) {
                Ok(covers) if (covers.first, covers.last) == (first, through) => {}
                _ => fs::remove_file(file).map_err(|error| SegmentError::Io { path: file.clone(), error })?,
            }
        }
        if !file.exists() {
            export(store, file, through)?;
        }
    }
    drop_through(store, through, by, file.as_deref())?;
    Ok(Some((first, through, file)))
}

#[cfg(test)]
mod tests;
