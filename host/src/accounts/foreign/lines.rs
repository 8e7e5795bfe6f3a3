//! Formats with one identity per line.

use zeroize::Zeroizing;

use super::{DAY, Entry, Format};
use crate::plain;
use crate::store::Record;

/// Parses a line. `None` for a line without an entry.
pub(super) fn entry(format: Format, line: &str) -> Option<Entry> {
    let comments = matches!(format, Format::Htpasswd | Format::Shadow);
    if line.trim().is_empty() || comments && line.starts_with('#') {
        return None;
    }
    let read = match format {
        Format::Json => json(line),
        Format::Htpasswd => htpasswd(line),
        Format::FilePasswordDb => file_password_db(line),
        Format::Shadow => shadow(line),
        // Its entries have several lines.
        Format::Ldif => return None,
    };
    Some(read.unwrap_or_else(Entry::Wrong))
}

fn json(line: &str) -> Result<Entry, String> {
    if !line.trim_start().starts_with('{') {
        return Err("it is not a JSON object: {…}".to_owned());
    }
    let record: Record = serde_json::from_str(line).map_err(|error| plain::json(&error))?;
    Ok(Entry::person(record, None))
}

fn named<'a>(line: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    let (name, rest) = line.split_once(':').ok_or_else(|| format!("it is not {form}"))?;
    if name.is_empty() { Err("it begins with no name".to_owned()) } else { Ok((name, rest)) }
}

/// Surrounding blanks are ignored, as in Apache.
fn htpasswd(line: &str) -> Result<Entry, String> {
    let (name, hash) = named(line.trim(), "NAME:HASH")?;
    if hash.contains(':') {
        return Err("it has more fields than NAME:HASH".to_owned());
    }
    Ok(Entry::person(Entry::hashed(name, hash), None))
}

/// Source: `twisted.cred.checkers.FilePasswordDB`, which uses the first two fields, has no comments, and strips blanks
/// at the end of a line.
fn file_password_db(line: &str) -> Result<Entry, String> {
    let (name, rest) = named(line.trim_end_matches(|c: char| c.is_ascii_whitespace()), "NAME:PASSWORD")?;
    let password = rest.split(':').next().unwrap_or_default();
    if password.is_empty() {
        return Err("it has no password".to_owned());
    }
    let record = Record { name: name.to_owned(), ..Record::default() };
    Ok(Entry::person(record, Some(Zeroizing::new(password.to_owned()))))
}

fn shadow(line: &str) -> Result<Entry, String> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, hash, changed, _, most, _, inactive, expires, _] = fields.as_slice() else {
        return Err(format!("it has {} fields; a line of shadow(5) has nine", fields.len()));
    };
    if fields[2..].iter().any(|field| !field.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("its last fields are not numbers, as shadow(5) requires".to_owned());
    }
    if name.is_empty() {
        return Err("it begins with no name".to_owned());
    }
    // A `!` before the hash locks the account: passwd -l.
    let (locked, hash) = (hash.starts_with('!'), hash.trim_start_matches('!'));
    match hash {
        "" if !locked => {
            return Err(format!("{name} can log in without a password there; here everybody needs one"));
        }
        "" => return Ok(Entry::Passed(format!("{name} has no password"))),
        // Every hash contains a dollar, or has the length of a DES hash.
        _ if !hash.starts_with('$') && hash.len() != 13 => {
            return Ok(Entry::Passed(format!("{name} has no password")));
        }
        _ => {}
    }
    let day = |field: &str| field.parse::<u64>().ok();
    let today = crate::store::now() / DAY;
    let mut record = Entry::hashed(name, hash);
    // Accounts that Unix no longer admits: the password must be changed first, or expired too long ago.
    let too_old = match (day(changed), day(most), day(inactive)) {
        (Some(0), _, _) => true,
        (Some(changed), Some(most), Some(inactive)) => changed.saturating_add(most).saturating_add(inactive) < today,
        _ => false,
    };
    record.disabled = locked || too_old;
    match (expires.is_empty(), day(expires)) {
        (true, _) => {}
        (_, Some(day)) if day > 0 => {
            record.credentials.iter_mut().for_each(|credential| credential.expires = Some(day.saturating_mul(DAY)));
        }
        _ => return Err("its day of expiry is 0, which means never to some programs and 1970 to others".to_owned()),
    }
    Ok(Entry::person(record, None))
}
