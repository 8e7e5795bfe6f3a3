//! LDIF, as LDAP servers write all that they have: RFC 2849. Of each entry what an identity is made of is kept.

use zeroize::Zeroizing;

use super::Entry;

/// An entry of which some lines have come.
#[derive(Default)]
pub struct Ldif {
    /// The number of its first line.
    begun: Option<usize>,
    /// A line that may go on in the next.
    unfolded: Option<(usize, Zeroizing<String>)>,
    dn: String,
    uid: Option<String>,
    passwords: Vec<Zeroizing<String>>,
    is_person: bool,
    wrong: Option<String>,
}

impl std::fmt::Debug for Ldif {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ldif").field("dn", &self.dn).finish_non_exhaustive()
    }
}

impl Ldif {
    /// One more line. Answers with the entry that it has ended.
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

    /// No line comes any more.
    pub fn end(&mut self) -> Option<(usize, Entry)> {
        self.unfold();
        let ended = std::mem::take(self);
        Some((ended.begun?, ended.entry().unwrap_or_else(Entry::Wrong)))
    }

    fn refuse(&mut self, why: String) {
        self.wrong.get_or_insert(why);
    }

    /// The line that was held back is whole.
    fn unfold(&mut self) {
        let Some((number, line)) = self.unfolded.take() else { return };
        if line.starts_with('#') || self.begun.is_none() && line.to_ascii_lowercase().starts_with("version:") {
            return;
        }
        self.begun.get_or_insert(number);
        let Some((attribute, value)) = line.split_once(':') else {
            return self.refuse(format!("line {number} is not ATTRIBUTE: VALUE"));
        };
        // Options, as of a language, make it no other attribute.
        let attribute = attribute.split(';').next().unwrap_or_default().to_ascii_lowercase();
        if !["dn", "uid", "userpassword", "objectclass", "changetype"].contains(&attribute.as_str()) {
            return;
        }
        match read(value) {
            Ok(value) => self.attribute(&attribute, value),
            Err(why) => self.refuse(format!("line {number}: {attribute} {why}")),
        }
    }

    fn attribute(&mut self, attribute: &str, value: Zeroizing<String>) {
        match attribute {
            "dn" => self.dn.clone_from(&value),
            // The first names it, as in its dn.
            "uid" if self.uid.is_none() => self.uid = Some(value.to_string()),
            "userpassword" => self.passwords.push(value),
            "objectclass" => self.is_person |= value.eq_ignore_ascii_case("inetOrgPerson"),
            "changetype" => self.refuse("a change (changetype); an export of all entries is taken".to_owned()),
            _ => {}
        }
    }

    fn entry(self) -> Result<Entry, String> {
        let dn = self.dn;
        let wrong = |why: String| Err(if dn.is_empty() { why } else { format!("{dn}: {why}") });
        if let Some(why) = self.wrong {
            return wrong(why);
        }
        if dn.is_empty() {
            return wrong("an entry without its dn".to_owned());
        }
        if !self.is_person {
            return Ok(Entry::Passed(format!("{dn} is no inetOrgPerson")));
        }
        let Some(uid) = self.uid else { return wrong("it has no uid".to_owned()) };
        let mut record = crate::store::Record { name: uid.clone(), ..crate::store::Record::default() };
        for (number, password) in self.passwords.iter().enumerate() {
            let hash = match hash(password) {
                Ok(hash) => hash,
                Err(why) => return wrong(why),
            };
            let mut hashed = Entry::hashed(&uid, hash).credentials.remove(0);
            if number > 0 {
                hashed.label = format!("password {}", number + 1);
            }
            record.credentials.push(hashed);
        }
        Ok(Entry::person(record, None))
    }
}

/// A value as it stands behind the colon: as it is, in base64, or elsewhere.
fn read(value: &str) -> Result<Zeroizing<String>, String> {
    if value.starts_with('<') {
        return Err("stands elsewhere (:<), where it is not looked for".to_owned());
    }
    let Some(encoded) = value.strip_prefix(':') else {
        return Ok(Zeroizing::new(value.trim_start_matches(' ').to_owned()));
    };
    let bytes = data_encoding::BASE64.decode(encoded.trim().as_bytes()).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| format!("is not base64: {error}"))?;
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).map_err(|_| "is no text".to_owned())
}

/// The hash in a userPassword, without its scheme.
fn hash(password: &str) -> Result<&str, String> {
    let Some((scheme, hash)) = password.strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
        return Err("userPassword is in the clear; {ARGON2} and {BCRYPT} are taken".to_owned());
    };
    match scheme.to_ascii_uppercase().as_str() {
        "ARGON2" | "BCRYPT" | "BLF-CRYPT" | "ARGON2ID" => Ok(hash),
        // Many servers keep bcrypt's there.
        "CRYPT" if hash.starts_with("$2") => Ok(hash),
        _ => Err(format!("userPassword is {{{scheme}}}, which is not checked here; {{ARGON2}} and {{BCRYPT}} are")),
    }
}
