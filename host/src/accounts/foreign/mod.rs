//! Reads identities of other programs into records: credhost's own JSON lines, Apache's htpasswd, Twisted's
//! `FilePasswordDB`, LDIF, Unix's shadow.
//!
//! An entry that is not completely understood is refused with its line; nothing is imported in part. An entry that is
//! understood, but cannot log in, such as an LDAP group or a daemon's line in shadow, is skipped and counted.

mod ldif;
mod lines;

use std::io::{self, BufRead, Read};

use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

pub use self::ldif::Ldif;
use crate::store::{CredentialRecord, Record};

/// A file format for identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line, as printed by `credhost identity export`.
    Json,
    /// Apache's `htpasswd -B`: `NAME:$2y$…` per line.
    Htpasswd,
    /// Twisted's `FilePasswordDB`: `NAME:PASSWORD` per line, in the clear.
    FilePasswordDb,
    /// RFC 2849, with inetOrgPerson entries of an LDAP server.
    Ldif,
    /// shadow(5).
    Shadow,
}

impl Format {
    /// All formats, with their names in commands.
    pub const ALL: [(&str, Self); 5] = [
        ("json", Self::Json),
        ("htpasswd", Self::Htpasswd),
        ("filepassworddb", Self::FilePasswordDb),
        ("ldif", Self::Ldif),
        ("shadow", Self::Shadow),
    ];

    /// Whether files of this format say nothing about an identity except its password and whether it is disabled.
    #[must_use]
    pub fn knows_passwords_only(self) -> bool {
        self != Self::Json
    }

    /// Detects the format from the first line that is not empty. Passwords in the clear are never detected, since a
    /// file of another format could be mistaken for them.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        let line = line.trim_start_matches('\u{feff}').trim_end();
        let lower = line.to_ascii_lowercase();
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            _ if line.trim_start().starts_with('{') => Some(Self::Json),
            _ if lower.starts_with("dn:") || lower.starts_with("version:") => Some(Self::Ldif),
            [_, _, _, _, _, _, _, _, _] => Some(Self::Shadow),
            [_, hash] if hash.starts_with('$') || hash.starts_with('{') => Some(Self::Htpasswd),
            _ => None,
        }
    }
}

/// An identity to import.
#[derive(Debug)]
pub struct Person {
    /// Its record in credhost's own format.
    pub record: Record,
    /// The password, if the file has it in the clear. It is hashed here.
    pub password: Option<Zeroizing<String>>,
}

/// A parsed entry, of one or more lines.
#[derive(Debug)]
pub enum Entry {
    /// An identity.
    Person(Box<Person>),
    /// An entry that cannot log in, with the reason.
    Passed(String),
    /// A refused entry, with the reason, and the place in the line if it is known.
    Wrong(String),
}

impl Entry {
    fn person(mut record: Record, password: Option<Zeroizing<String>>) -> Self {
        // Names are stored in NFC, so two spellings of a name are the same name.
        record.name = record.name.nfc().collect();
        Self::Person(Box::new(Person { record, password }))
    }

    /// A record with this name and this password hash.
    fn hashed(name: &str, hash: &str) -> Record {
        let password = CredentialRecord {
            label: "password".to_owned(),
            created: crate::store::now(),
            password: Some(hash.to_owned()),
            ..CredentialRecord::default()
        };
        Record { name: name.to_owned(), credentials: vec![password], ..Record::default() }
    }
}

/// A day, in seconds.
const DAY: u64 = 86_400;

/// The longest line that is read, in bytes. A picture in LDIF may be long.
const LONGEST: u64 = 16 << 20;

/// Reads entries, each with the number of its first line.
pub struct Reader<R> {
    from: R,
    format: Format,
    line: usize,
    /// The number of bytes that were read.
    read: u64,
    ldif: Ldif,
}

impl<R: BufRead> Reader<R> {
    /// Reads entries in this format.
    #[must_use]
    pub fn new(from: R, format: Format) -> Self {
        Self { from, format, line: 0, read: 0, ldif: Ldif::default() }
    }

    /// The number of bytes that were read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read
    }

    /// Reads the next line, without its line ending; `None` at the end of the file.
    fn next_line(&mut self) -> io::Result<Option<Result<Zeroizing<String>, String>>> {
        let mut bytes = Zeroizing::new(Vec::new());
        let count = Read::take(&mut self.from, LONGEST).read_until(b'\n', &mut bytes)?;
        if count == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.read += count as u64;
        if count as u64 == LONGEST && bytes.last() != Some(&b'\n') {
            self.skip_line()?;
            return Ok(Some(Err(format!("it is longer than {} MiB", LONGEST >> 20))));
        }
        let end = bytes.len() - bytes.iter().rev().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
        let text = std::str::from_utf8(&bytes[..end]);
        Ok(Some(match text {
            Ok(text) if self.line == 1 => Ok(Zeroizing::new(text.trim_start_matches('\u{feff}').to_owned())),
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(error) => Err(format!("byte {} is not UTF-8", error.valid_up_to() + 1)),
        }))
    }

    /// Skips the rest of a line.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.from.fill_buf()?;
            let (end, count) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (true, at + 1),
                None => (buffer.is_empty(), buffer.len()),
            };
            self.from.consume(count);
            self.read += count as u64;
            if end {
                return Ok(());
            }
        }
    }

    fn entry(&mut self) -> io::Result<Option<(usize, Entry)>> {
        if self.format == Format::Ldif {
            return self.next_of_ldif();
        }
        while let Some(line) = self.next_line()? {
            let entry = match line {
                Err(why) => Some(Entry::Wrong(why)),
                Ok(line) => lines::entry(self.format, &line),
            };
            if let Some(entry) = entry {
                return Ok(Some((self.line, entry)));
            }
        }
        Ok(None)
    }

    fn next_of_ldif(&mut self) -> io::Result<Option<(usize, Entry)>> {
        loop {
            let line = self.next_line()?;
            let ended = line.is_none();
            let entry = match line {
                Some(line) => self.ldif.line(self.line, line),
                None => self.ldif.end(),
            };
            if entry.is_some() || ended {
                return Ok(entry);
            }
        }
    }
}

/// Yields an error if the file cannot be read.
impl<R: BufRead> Iterator for Reader<R> {
    type Item = io::Result<(usize, Entry)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entry().transpose()
    }
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("format", &self.format).field("line", &self.line).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

    /// The entries read from a text, one line each.
    fn read(format: Format, text: &str) -> Vec<String> {
        let entries = Reader::new(text.as_bytes(), format).map(|entry| {
            let (line, entry) = entry.unwrap();
            match entry {
                Entry::Person(person) => {
                    let record = person.record;
                    let hash = record.credentials.first().and_then(|credential| credential.password.clone());
                    let how = match (hash, person.password) {
                        (Some(hash), _) => hash.chars().take(7).collect(),
                        (None, Some(password)) => format!("password {:?}", *password),
                        (None, None) => "nothing".to_owned(),
                    };
                    let disabled = if record.disabled { " disabled" } else { "" };
                    let until = record.credentials.first().and_then(|credential| credential.expires);
                    let until = until.map_or_else(String::new, |until| format!(" until {until}"));
                    format!("{line}: {} by {how}{disabled}{until}", record.name)
                }
                Entry::Passed(why) => format!("{line}: passed: {why}"),
                Entry::Wrong(why) => format!("{line}: wrong: {why}"),
            }
        });
        entries.collect()
    }

    #[test]
    fn a_format_is_recognized_by_its_first_line() {
        for (line, format) in [
            ("{\"name\": \"alice\"}", Some(Format::Json)),
            ("dn: uid=alice,dc=example", Some(Format::Ldif)),
            ("version: 1", Some(Format::Ldif)),
            ("\u{feff}version: 1", Some(Format::Ldif)),
            ("alice:$2y$05$abc", Some(Format::Htpasswd)),
            ("alice:{SHA}abc=", Some(Format::Htpasswd)),
            ("root:*:19000:0:99999:7:::", Some(Format::Shadow)),
            ("alice:secret", None),
            ("alice", None),
            ("", None),
        ] {
            assert_eq!(Format::of(line), format, "{line}");
        }
    }

    #[test]
    fn htpasswd_and_twisteds_file_have_a_name_and_one_thing_more() {
        let text = format!("# people\n\nalice:{BCRYPT} \r\nbob\nbob:a:b\n:x\n");
        assert_eq!(
            read(Format::Htpasswd, &text),
            [
                "3: alice by $2y$05$",
                "4: wrong: it is not NAME:HASH",
                "5: wrong: it has more fields than NAME:HASH",
                "6: wrong: it begins with no name",
            ]
        );
        let text = "alice:correct horse  \nbob:a:b\ncarol:\n#dave:x\n";
        assert_eq!(
            read(Format::FilePasswordDb, text),
            [
                "1: alice by password \"correct horse\"",
                "2: bob by password \"a\"",
                "3: wrong: it has no password",
                "4: #dave by password \"x\"",
            ],
            "as FilePasswordDB reads them: its second field, and no comments"
        );
    }

    #[test]
    fn lines_of_json_are_refused_with_their_column() {
        let text = "{\"name\": \"alice\"}\n{\"name\": 5}\n{\"nam\": \"x\"}\n\n{\"name\": \"b\"";
        let read = read(Format::Json, text);
        assert_eq!(read[0], "1: alice by nothing");
        assert_eq!(read[1], "2: wrong: column 10: 5 stands where a text is expected");
        assert!(read[2].starts_with("3: wrong: column 6: unknown field `nam`"), "{}", read[2]);
        assert!(read[3].starts_with("5: wrong: column 12:") && !read[3].contains("line 1"), "{}", read[3]);
    }

    #[test]
    fn shadow_has_people_and_daemons() {
        let text = format!(
            "alice:{BCRYPT}:19000:0:99999:7:::\nbob:!{BCRYPT}:19000::::: :\ncarol:!{BCRYPT}:19000:0:99999:7:::\n\
             dave:{BCRYPT}:19000:0:99999:7::20000:\nroot:*:19000:0:99999:7:::\neve:!:1::::::\n\
             mallory::1::::::\nshort:x\nmust:{BCRYPT}:0:0:99999:7:::\nold:{BCRYPT}:10000:0:90:7:30::\n\
             late:{BCRYPT}:10000:0:90:7:::\nzero:{BCRYPT}:10000::::: 0:\nnil:{BCRYPT}:10000:::::0:\n\
             sun:*LK*:10000::::::\nnp:NP:10000::::::\n"
        );
        assert_eq!(
            read(Format::Shadow, &text),
            [
                "1: alice by $2y$05$",
                "2: wrong: its last fields are not numbers, as shadow(5) requires",
                "3: carol by $2y$05$ disabled",
                "4: dave by $2y$05$ until 1728000000",
                "5: passed: root has no password",
                "6: passed: eve has no password",
                "7: wrong: mallory can log in without a password there; here everybody needs one",
                "8: wrong: it has 2 fields; a line of shadow(5) has nine",
                "9: must by $2y$05$ disabled",
                "10: old by $2y$05$ disabled",
                "11: late by $2y$05$",
                "12: wrong: its last fields are not numbers, as shadow(5) requires",
                "13: wrong: its day of expiry is 0, which means never to some programs and 1970 to others",
                "14: passed: sun has no password",
                "15: passed: np has no password",
            ]
        );
    }

    #[test]
    fn ldif_has_people_among_others() {
        let hash = data_encoding::BASE64.encode(format!("{{BCRYPT}}{BCRYPT}").as_bytes());
        let text = format!(
            "version: 1\n\n# the tree\ndn: dc=example,dc=org\nobjectClass: organization\no: Example\n\n\
             dn: uid=alice,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: alice\nuserPassword: {{ARGON2}}$argon2id$v=19$m=19456,t=2,p=1\n \
             $c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\ncn: Alice\n\n\
             dn: uid=bob,dc=example,dc=org\nOBJECTCLASS: INETORGPERSON\nuid: bob\nuserPassword:: {hash}\n\n\
             dn: uid=carol,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: carol\nuserPassword: {{SSHA}}abc\n\n\
             dn: uid=dave,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: dave\n\n\
             dn: cn=eve,dc=example,dc=org\nobjectClass: inetOrgPerson\ncn: eve\n\n\
             dn: uid=frank,dc=example,dc=org\nchangetype: delete\n\n\
             dn: uid=grace,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: grace\nno colon\n\n\
             dn: uid=heidi,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: heidi\nuserPassword: {{CRYPT}}{BCRYPT}\nuserPassword: secret\n"
        );
        assert_eq!(
            read(Format::Ldif, &text),
            [
                "4: passed: dc=example,dc=org is not a person (inetOrgPerson, posixAccount …)",
                "8: alice by $argon2",
                "15: bob by $2y$05$",
                "20: wrong: uid=carol,dc=example,dc=org: userPassword is {SSHA}, which is not supported; {ARGON2} and {BCRYPT} are",
                "25: dave by nothing",
                "29: wrong: cn=eve,dc=example,dc=org: it has no uid",
                "33: wrong: uid=frank,dc=example,dc=org: a change record (changetype); only an export of all entries can be imported",
                "36: wrong: uid=grace,dc=example,dc=org: line 39 is not ATTRIBUTE: VALUE",
                "41: wrong: uid=heidi,dc=example,dc=org: userPassword is in the clear; only {ARGON2} and {BCRYPT} are supported",
            ]
        );
    }

    #[test]
    fn an_ldif_entry_is_one_identity_and_disabled_ones_stay_so() {
        let person = |name: &str, more: &str| {
            format!(
                "dn: uid={name},dc=example\nobjectClass: inetOrgPerson \nuid: {name}\nuserPassword: {{BCRYPT}}{BCRYPT}\n{more}"
            )
        };
        for (text, said) in [
            (person("a", &person("b", "")), "1: wrong: uid=a,dc=example: line 5: a second dn"),
            (person("a", "pwdAccountLockedTime: 000001010000Z\n"), "1: a by $2y$05$ disabled"),
            (person("a", "nsAccountLock: TRUE\n"), "1: a by $2y$05$ disabled"),
            (person("a", "nsAccountLock: false\n"), "1: a by $2y$05$"),
            (person("a", "shadowExpire: 20000\n"), "1: a by $2y$05$ until 1728000000"),
            (person("a", "shadowExpire: -1\n"), "1: a by $2y$05$"),
            (
                person("a", "userPassword;vdcsn-5;deleted: x\n"),
                "1: wrong: uid=a,dc=example: line 5: userpassword has the unsupported option",
            ),
            (person("a", "uid: other\n"), "1: a by $2y$05$"),
            (person("a", "cn: x\n\ty\n"), "1: wrong: uid=a,dc=example: line 6 is not ATTRIBUTE: VALUE"),
            (
                person("a", "userPassword: {mySecret}\n"),
                "1: wrong: uid=a,dc=example: userPassword is of an unknown kind",
            ),
            (person("a", "\nsearch: 2\nresult: 0 Success\n"), "1: a by $2y$05$"),
            ("uid: a\ndn: uid=a\n".to_owned(), "1: wrong: line 2: an entry must begin with its dn"),
        ] {
            let read = read(Format::Ldif, &text);
            assert!(read.len() == 1 && read[0].starts_with(said) && !read[0].contains("mySecret"), "{text}{read:#?}");
        }
    }

    #[test]
    fn misplaced_secrets_are_not_repeated_in_errors() {
        for line in ["{\"name\": \"a\", \"credentials\": \"hunter2hunter2\"}", "[\"a\", true]", "{\"hunter2\": 5}"] {
            let said = read(Format::Json, line).concat();
            assert!(said.contains("wrong") && (!said.contains("hunter2") || line.contains("{\"hunter2")), "{said}");
        }
    }

    #[test]
    fn names_are_read_in_the_form_in_which_they_are_stored() {
        let read = read(Format::FilePasswordDb, "Zoe\u{308}:first password");
        assert_eq!(read, ["1: Zo\u{eb} by password \"first password\""]);
    }

    #[test]
    fn a_line_that_is_too_long_does_not_affect_the_next() {
        let text = format!("a:{}\nb:{BCRYPT}\n", "x".repeat(17 << 20));
        assert_eq!(read(Format::Htpasswd, &text), ["1: wrong: it is longer than 16 MiB", "2: b by $2y$05$"]);
    }

    proptest::proptest! {
        #[test]
        fn every_line_is_read_refused_or_skipped(text in "[a-z:{}$ \n\r#!*0-9]{0,200}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..50)) {
            for (_, format) in Format::ALL {
                for input in [text.as_bytes(), &bytes] {
                    let entries: Vec<usize> = Reader::new(input, format).map(|entry| entry.unwrap().0).collect();
                    proptest::prop_assert!(entries.is_sorted());
                    proptest::prop_assert!(entries.len() <= input.split(|byte| *byte == b'\n').count());
                }
            }
        }
    }
}
