//! LDIF, the export format of LDAP servers (RFC 2849). Of each entry, the parts of an identity are kept.

use zeroize::Zeroizing;

use super::{DAY, Entry};
use crate::store::Record;

/// The object classes of people. Others, such as groups and branches of the tree, are skipped.
const PEOPLE: [&str; 5] = ["inetorgperson", "organizationalperson", "person", "posixaccount", "account"];
/// Attributes that disable an account: with any value, or with this one.
const LOCKS: [(&str, Option<&str>); 3] =
    [("pwdaccountlockedtime", None), ("nsaccountlock", Some("true")), ("logindisabled", Some("true"))];
/// The result lines that `ldapsearch` prints at the end, in the form of an entry.
const SEARCH: [&str; 3] = ["search", "result", "# search"];

/// A partly read entry.
#[derive(Default)]
pub struct Ldif {
    /// The number of its first line.
    begun: Option<usize>,
    /// A line that the next one may continue.
    unfolded: Option<(usize, Zeroizing<String>)>,
    dn: Option<String>,
    uids: Vec<String>,
    passwords: Vec<Zeroizing<String>>,
    is_person: bool,
    is_locked: bool,
    /// The day on which the passwords expire.
    expires: Option<u64>,
    /// Whether it consists only of a search's result lines.
    is_of_search: bool,
    wrong: Option<String>,
}

impl std::fmt::Debug for Ldif {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ldif").field("dn", &self.dn).finish_non_exhaustive()
    }
}

impl Ldif {
    /// Reads one line. Returns the entry that it completes.
    pub fn line(&mut self, number: usize, line: Result<Zeroizing<String>, String>) -> Option<(usize, Entry)> {
        match line {
            Err(why) => {
                self.unfold();
                self.refuse(format!("line {number}: {why}"));
                self.begun.get_or_insert(number);
                None
            }
            Ok(line) if line.is_empty() => self.end(),
            Ok(line) => {
                match (line.strip_prefix(' '), &mut self.unfolded) {
                    (Some(more), Some((_, text))) => text.push_str(more),
                    _ => {
                        self.unfold();
                        self.unfolded = Some((number, line));
                    }
                }
                None
            }
        }
    }

    /// Ends the input.
    pub fn end(&mut self) -> Option<(usize, Entry)> {
        self.unfold();
        let ended = std::mem::take(self);
        let begun = ended.begun?;
        if ended.is_of_search && ended.dn.is_none() && ended.wrong.is_none() {
            return None;
        }
        Some((begun, ended.entry().unwrap_or_else(Entry::Wrong)))
    }

    fn refuse(&mut self, why: String) {
        self.wrong.get_or_insert(why);
    }

    /// Processes the line that was held back, which is complete now.
    fn unfold(&mut self) {
        let Some((number, line)) = self.unfolded.take() else { return };
        if line.starts_with('#') || self.begun.is_none() && line.to_ascii_lowercase().starts_with("version:") {
            return;
        }
        let first = self.begun.is_none();
        self.begun.get_or_insert(number);
        let Some((description, value)) = line.split_once(':').filter(|_| !line.starts_with(char::is_whitespace)) else {
            return self.refuse(format!("line {number} is not ATTRIBUTE: VALUE"));
        };
        let mut options = description.split(';');
        let attribute = options.next().unwrap_or_default().to_ascii_lowercase();
        self.is_of_search = (first || self.is_of_search) && SEARCH.contains(&attribute.as_str());
        let known = ["dn", "uid", "userpassword", "objectclass", "changetype", "shadowexpire"];
        if !known.contains(&attribute.as_str()) && !LOCKS.iter().any(|(lock, _)| *lock == attribute) {
            return;
        }
        // An option, such as a language or an old value, changes the meaning of the value.
        if let Some(option) = options.next() {
            return self.refuse(format!("line {number}: {attribute} has the unsupported option {option:?}"));
        }
        match read(value) {
            Ok(value) => self.attribute(number, &attribute, value),
            Err(why) => self.refuse(format!("line {number}: {attribute} {why}")),
        }
    }

    fn attribute(&mut self, number: usize, attribute: &str, value: Zeroizing<String>) {
        match attribute {
            "dn" if self.dn.is_some() => {
                self.refuse(format!("line {number}: a second dn; an empty line must separate two entries"));
            }
            "dn" if self.begun != Some(number) => {
                self.refuse(format!("line {number}: an entry must begin with its dn"))
            }
            "dn" => self.dn = Some(value.to_string()),
            "uid" => self.uids.push(value.trim().to_owned()),
            "userpassword" => self.passwords.push(value),
            "objectclass" => self.is_person |= PEOPLE.contains(&value.trim().to_ascii_lowercase().as_str()),
            "changetype" => {
                self.refuse("a change record (changetype); only an export of all entries can be imported".to_owned())
            }
            "shadowexpire" => match value.trim().parse::<i64>() {
                Ok(-1) => {}
                Ok(day) if day > 0 => self.expires = Some(day.unsigned_abs().saturating_mul(DAY)),
                _ => self.refuse(format!("line {number}: shadowExpire is neither a day after 1970 nor -1")),
            },
            lock => {
                let says = value.trim().to_ascii_lowercase();
                self.is_locked |=
                    LOCKS.iter().any(|(name, word)| *name == lock && word.is_none_or(|word| word == says));
            }
        }
    }

    /// The name: its only uid, or the uid at the beginning of its dn.
    fn name(&self, dn: &str) -> Result<String, String> {
        match self.uids.as_slice() {
            [] => Err("it has no uid".to_owned()),
            [one] => Ok(one.clone()),
            several => {
                let first = dn.split(',').next().unwrap_or_default();
                let named = first.split_once('=').filter(|(attribute, _)| attribute.trim().eq_ignore_ascii_case("uid"));
                let of_dn =
                    named.and_then(|(_, name)| several.iter().find(|uid| uid.eq_ignore_ascii_case(name.trim())));
                of_dn.cloned().ok_or_else(|| "it has several uids, and its dn begins with none of them".to_owned())
            }
        }
    }

    fn entry(self) -> Result<Entry, String> {
        let dn = self.dn.clone().unwrap_or_default();
        let wrong = |why: String| if dn.is_empty() { why } else { format!("{dn}: {why}") };
        if let Some(why) = self.wrong {
            return Err(wrong(why));
        }
        if dn.is_empty() {
            return Err("an entry without its dn".to_owned());
        }
        if !self.is_person {
            return Ok(Entry::Passed(format!("{dn} is not a person (inetOrgPerson, posixAccount …)")));
        }
        let name = self.name(&dn).map_err(wrong)?;
        let mut record = Record { name: name.clone(), disabled: self.is_locked, ..Record::default() };
        for (number, password) in self.passwords.iter().enumerate() {
            let hash = hash(password).map_err(wrong)?;
            let mut hashed = Entry::hashed(&name, hash).credentials.remove(0);
            hashed.expires = self.expires;
            if number > 0 {
                hashed.label = format!("password {}", number + 1);
            }
            record.credentials.push(hashed);
        }
        Ok(Entry::person(record, None))
    }
}

/// Decodes the value after the colon: plain, in base64, or a reference (an error).
fn read(value: &str) -> Result<Zeroizing<String>, String> {
    if value.starts_with('<') {
        return Err("is in another file (:<), which is not read".to_owned());
    }
    let Some(encoded) = value.strip_prefix(':') else {
        return Ok(Zeroizing::new(value.trim_start_matches(' ').to_owned()));
    };
    let bytes = data_encoding::BASE64.decode(encoded.trim().as_bytes()).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| format!("is not base64: {error}"))?;
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).map_err(|_| "is not text".to_owned())
}

/// Returns the hash in a userPassword, without its scheme. The error names the scheme only if it is a known one, since
/// other text in braces may be a password.
fn hash(password: &str) -> Result<&str, String> {
    const OTHERS: [&str; 14] = [
        "SSHA",
        "SHA",
        "SMD5",
        "MD5",
        "CRYPT",
        "SSHA256",
        "SSHA384",
        "SSHA512",
        "SHA256",
        "SHA512",
        "PBKDF2",
        "PBKDF2-SHA256",
        "PBKDF2-SHA512",
        "SASL",
    ];
    let Some((scheme, hash)) = password.strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
        return Err("userPassword is in the clear; only {ARGON2} and {BCRYPT} are supported".to_owned());
    };
    match scheme.to_ascii_uppercase().as_str() {
        "ARGON2" | "BCRYPT" | "BLF-CRYPT" | "ARGON2ID" => Ok(hash),
        // Many servers store bcrypt hashes there.
        "CRYPT" if hash.starts_with("$2") => Ok(hash),
        other if OTHERS.contains(&other) => {
            Err(format!("userPassword is {{{other}}}, which is not supported; {{ARGON2}} and {{BCRYPT}} are"))
        }
        _ => Err("userPassword is of an unknown kind; only {ARGON2} and {BCRYPT} are supported".to_owned()),
    }
}
