//! Requests about the audit trail.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::failure::ControlFailure;
use crate::accounts::Accounts;
use crate::segments::{self, Covers, Destination, Keep, SegmentError};
use crate::store::audit::{Broken, Edge, Head};
use crate::store::now;

const CHANGED: &str = "somebody has written to store.db without permission; compare it with a backup";

impl From<SegmentError> for ControlFailure {
    fn from(error: SegmentError) -> Self {
        let hint = match &error {
            SegmentError::Store(store) => return store.clone().into(),
            SegmentError::Io { .. } => "name another file, or make room; the trail is unchanged",
            SegmentError::File { .. } => "compare it with a copy; the next segment records its end",
            SegmentError::Dropped(_) => {
                "compare it with the segment that contains it: `credhost audit verify --file FILE`"
            }
            SegmentError::Broken(_) => CHANGED,
        };
        Self { error: error.to_string(), hint: Some(hint.to_owned()) }
    }
}

/// Verifies the whole trail, against the head that is recorded beside the store, and against `head`, if one is given.
fn verify(
    accounts: &Accounts,
    head: Option<&str>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Head, Head), ControlFailure> {
    let wrong =
        |error: String| ControlFailure { error, hint: Some("it must belong to this user, with mode 0600".to_owned()) };
    let given = head.map(|head| {
        Head::parse(head).ok_or_else(|| ControlFailure {
            error: format!("{head:?} is not the head of a trail"),
            hint: Some("an earlier `audit verify` has printed it: NUMBER DIGEST".to_owned()),
        })
    });
    let given = given.transpose()?;
    let path = accounts.store().head();
    // The host rewrites this file with each commit. It is read before the trail, so it is never newer.
    let noted = match path.as_ref().map(|path| (path.display(), std::fs::read_to_string(path))) {
        Some((path, Ok(text))) => {
            let head = Head::unsealed(&text, Edge::Head, accounts.secret());
            Some(head.ok_or_else(|| ControlFailure {
                error: format!("{path} was not written by this host: it was changed, or lost in a power cut"),
                hint: elsewhere(),
            })?)
        }
        Some((path, Err(error))) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(wrong(format!("{path}: {error}")));
        }
        _ => None,
    };
    let of = noted.as_ref().map_or(0, |head| head.number);
    let (begins, head) = segments::verify(&**accounts.store(), &[given.clone(), noted.clone()], &mut |line| {
        progress(line, of.max(line));
    })
    .map_err(|error| match (&error, &given) {
        // The trail ends before the head that was given, or has another line there.
        (SegmentError::Broken(Broken::Short(_, at) | Broken::Head(at)), Some(given)) if given.number == *at => {
            let hint = format!("compare {given} with the copy that you stored; if it is right, {CHANGED}");
            ControlFailure { error: error.to_string(), hint: Some(hint) }
        }
        _ => error.into(),
    })?;
    if noted.is_none() && given.is_none() {
        let any = head.number > 0;
        let removed = || "there are identities, but no line of the trail: it was removed".to_owned();
        let error = match path {
            Some(path) if any => Some(format!(
                "the lines form a chain, but {} is missing: lines may have been cut off at the end",
                path.display()
            )),
            // For a store without such a file, lines cut off at the end are detected only by `head`.
            _ => (!any && !accounts.page(None, 1)?.is_empty()).then(removed),
        };
        if let Some(error) = error {
            return Err(ControlFailure { error, hint: elsewhere() });
        }
    }
    Ok((begins, head))
}

/// Verifies the trail, and its exported segments in order: each must begin where the previous one ends.
pub(super) fn verify_all(
    accounts: &Accounts,
    (head, files): (Option<&str>, &[PathBuf]),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Value, ControlFailure> {
    let mut covered: Vec<(&Path, Covers)> = Vec::new();
    for file in files {
        let covers = segments::verify_file(accounts.secret(), file).map_err(|error| match error {
            SegmentError::Io { .. } => ControlFailure {
                error: error.to_string(),
                hint: Some("name a file that `credhost audit export` or `audit prune` has written".to_owned()),
            },
            error => error.into(),
        })?;
        covered.push((file, covers));
    }
    let (begins, head) = verify(accounts, head, progress)?;
    let next = covered.iter().skip(1).map(|(_, covers)| covers.after.clone()).chain([begins.to_string()]);
    let joins: Vec<bool> = covered.iter().zip(next).map(|((_, covers), next)| covers.end == next).collect();
    let segments: Vec<Value> = covered
        .iter()
        .zip(&joins)
        .map(|((file, covers), joins)| {
            json!({ "file": file, "first": covers.first, "last": covers.last, "end": covers.end, "joins": joins })
        })
        .collect();
    let lines = head.number - begins.number;
    Ok(json!({
        "lines": lines,
        "first": begins.number + 1,
        "after": begins.to_string(),
        "head": head.to_string(),
        "segments": segments,
    }))
}

fn keep(text: &str) -> Result<Keep, ControlFailure> {
    let hint =
        || Some("\"90 days\" keeps the lines that are not older, \"100 MiB\" the latest lines of that size".to_owned());
    Keep::parse(text).map_err(|error| ControlFailure { error, hint: hint() })
}

/// Exports the trail, or the lines that are too old to be kept, into a file.
pub(super) fn export(accounts: &Accounts, file: &Path, older: Option<&str>) -> Result<Value, ControlFailure> {
    let store = &**accounts.store();
    let through = match older {
        Some(older) => segments::dispensable(store, keep(older)?, now() * 1000)?.map(|line| line.number),
        None => Some(segments::verify(store, &[None], &mut |_| ())?.1.number),
    };
    let Some(through) = through else { return Ok(Value::Null) };
    Ok(json!(segments::export(store, file, through)?))
}

/// Drops the lines that are too old to be kept.
pub(super) fn prune(accounts: &Accounts, kept: &str, file: Option<&Path>, by: &str) -> Result<Value, ControlFailure> {
    let store = &**accounts.store();
    let into = file.map_or(Destination::Nothing, Destination::File);
    Ok(json!(segments::prune(store, keep(kept)?, into, by, now() * 1000)?))
}

fn elsewhere() -> Option<String> {
    let hint = "compare with a head that you stored elsewhere: `credhost audit verify --head \"NUMBER DIGEST\"`";
    Some(hint.to_owned())
}
