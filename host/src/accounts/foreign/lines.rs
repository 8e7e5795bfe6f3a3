//! Formats that have somebody a line.

use zeroize::Zeroizing;

use super::{Entry, Format};
use crate::plain;
use crate::store::Record;

/// What a line is; `None`: nothing.
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
        // Its entries have more than a line.
        Format::Ldif => return None,
    };
    Some(read.unwrap_or_else(Entry::Wrong))
}

fn json(line: &str) -> Result<Entry, String> {
    let record: Record = serde_json::from_str(line).map_err(|error| plain::json(&error))?;
    Ok(Entry::person(record, None))
}

fn named<'a>(line: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    let (name, rest) = line.split_once(':').ok_or_else(|| format!("it is not {form}"))?;
    if name.is_empty() { Err("it begins with no name".to_owned()) } else { Ok((name, rest)) }
}

fn htpasswd(line: &str) -> Result<Entry, String> {
    let (name, hash) = named(line, "NAME:HASH")?;
    if hash.contains(':') {
        return Err("it has more fields than NAME:HASH".to_owned());
    }
    Ok(Entry::person(Entry::hashed(name, hash), None))
}

/// Source: `twisted.cred.checkers.FilePasswordDB`, which takes the first two fields and knows no comments.
fn file_password_db(line: &str) -> Result<Entry, String> {
    let (name, rest) = named(line, "NAME:PASSWORD")?;
    let password = rest.split(':').next().unwrap_or_default();
    if password.is_empty() {
        return Err("it has no password".to_owned());
    }
    let record = Record { name: name.to_owned(), ..Record::default() };
    Ok(Entry::person(record, Some(Zeroizing::new(password.to_owned()))))
}

fn shadow(line: &str) -> Result<Entry, String> {
    const DAY: u64 = 86_400;
    let fields: Vec<&str> = line.split(':').collect();
    let [name, hash, .., _, expires, _] = fields.as_slice() else {
        return Err(format!("it has {} fields; a line of shadow(5) has nine", fields.len()));
    };
    if fields.len() != 9 {
        return Err(format!("it has {} fields; a line of shadow(5) has nine", fields.len()));
    }
    if fields[2..].iter().any(|field| !field.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("its last fields are not as shadow(5) has them".to_owned());
    }
    // What is before the hash says that it may not be used: passwd -l.
    let (locked, hash) = (hash.starts_with('!'), hash.trim_start_matches('!'));
    match hash {
        _ if name.is_empty() => return Err("it begins with no name".to_owned()),
        "" if !locked => {
            return Err(format!("{name} may log in without a password there, which nobody may here"));
        }
        "" | "*" | "x" => return Ok(Entry::Passed(format!("{name} has no password"))),
        _ => {}
    }
    let mut record = Entry::hashed(name, hash);
    record.disabled = locked;
    if !expires.is_empty() {
        let day: u64 = expires.parse().map_err(|_| "its day of expiry is too large".to_owned())?;
        record.credentials.iter_mut().for_each(|credential| credential.expires = Some(day.saturating_mul(DAY)));
    }
    Ok(Entry::person(record, None))
}
