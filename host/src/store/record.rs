//! The serialized form of an identity, in the store, in an export and in an import: one JSON object.

use serde::{Deserialize, Serialize};

use crate::cred::{Credential, Identity, Key, NameError, ProofBy, PublicKey, Remembered, Sealed, check_label};

/// An identity in JSON. Missing fields have their default, so that future versions can read today's records.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Whether it is disabled.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// Its keys, each as "service/perspective".
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Its credentials.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialRecord>,
    /// The number of its next credential.
    #[serde(skip_serializing_if = "is_zero")]
    pub next: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A credential in JSON: it has one of `password`, `pubkey`, `token` and `login`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialRecord {
    /// Its number.
    #[serde(skip_serializing_if = "is_zero")]
    pub id: u64,
    /// The label by which people recognize it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// When it was added, in seconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub created: u64,
    /// When it expires, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// An argon2id hash, or an imported bcrypt hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// md5 of the password, sealed under master.key, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier: Option<String>,
    /// An SSH public key, as a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<String>,
    /// The digest of a token, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A login that outlives its connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginRecord>,
}

/// A remembered login in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRecord {
    /// The digest of its token, in hex.
    pub token: String,
    /// The service at whose door it began.
    pub service: String,
    /// The number of the credential that it began with.
    pub by: u64,
    /// It expires this many seconds after its last use.
    pub idle: u64,
    /// When it expires in any case, in seconds since 1970.
    pub until: u64,
}

/// The most credentials of an identity in a record.
const MOST_CREDENTIALS: usize = 1000;
/// The upper bound of credentials' numbers (exclusive).
const LAST: u64 = 1 << 53;
/// The last second of the year 9999.
pub const LATEST: u64 = 253_402_300_799;

/// Why a record is not a valid identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A name is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another part of it is invalid.
    #[error("{0}")]
    Content(String),
}

impl From<&Identity> for Record {
    fn from(identity: &Identity) -> Self {
        Self {
            name: identity.name.to_string(),
            disabled: !identity.enabled,
            keys: identity.keyring.keys().map(|key| format!("{}/{}", key.service, key.perspective)).collect(),
            credentials: identity.credentials.iter().map(Into::into).collect(),
            next: identity.next,
        }
    }
}

impl From<&Credential> for CredentialRecord {
    fn from(credential: &Credential) -> Self {
        let mut record = Self {
            id: credential.id,
            label: credential.label.clone(),
            created: credential.created,
            expires: credential.expires,
            ..Self::default()
        };
        match &credential.proof {
            ProofBy::Password { hash, verifier } => {
                record.password = Some(hash.clone());
                record.verifier = verifier.as_ref().map(|sealed| data_encoding::BASE64.encode(&sealed.0));
            }
            ProofBy::PublicKey(key) => record.pubkey = Some(key.line()),
            ProofBy::Token(digest) => record.token = Some(data_encoding::HEXLOWER.encode(digest)),
            ProofBy::Login(Remembered { token, service, by, idle, until }) => {
                let token = data_encoding::HEXLOWER.encode(token);
                let (service, by, idle, until) = (service.clone(), *by, *idle, *until);
                record.login = Some(LoginRecord { token, service, by, idle, until });
            }
        }
        record
    }
}

fn digest(hex: &str) -> Result<[u8; 32], String> {
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
    let digest = bytes.and_then(|bytes| bytes.try_into().ok());
    digest.ok_or_else(|| "token is not a digest of 64 hexadecimal digits".to_owned())
}

impl CredentialRecord {
    fn proof(&self) -> Result<ProofBy, String> {
        match (&self.password, &self.pubkey, &self.token, &self.login) {
            (Some(hash), None, None, None) => {
                let decoded = self.verifier.as_ref().map(|text| data_encoding::BASE64.decode(text.as_bytes()));
                let verifier = decoded.transpose().map_err(|error| format!("verifier is not base64: {error}"))?;
                Ok(ProofBy::Password { hash: hash.clone(), verifier: verifier.map(Sealed) })
            }
            (None, Some(line), None, None) => {
                PublicKey::parse(line).map(|(key, _)| ProofBy::PublicKey(key)).map_err(|error| error.to_string())
            }
            (None, None, Some(hex), None) => digest(hex).map(ProofBy::Token),
            (None, None, None, Some(login)) => {
                let LoginRecord { token, service, by, idle, until } = login;
                if *until > LATEST || *idle > LATEST {
                    return Err("the times of a login are seconds, up to the year 9999".to_owned());
                }
                let (token, service, by, idle, until) = (digest(token)?, service.clone(), *by, *idle, *until);
                Ok(ProofBy::Login(Remembered { token, service, by, idle, until }))
            }
            _ => Err("a credential has one of password, pubkey, token and login".to_owned()),
        }
    }
}

impl Record {
    /// Converts it into an identity.
    ///
    /// # Errors
    /// If it is invalid: what is wrong, and in which part of it.
    pub fn identity(&self) -> Result<Identity, RecordError> {
        let mut identity = Identity::new(&self.name)?;
        identity.enabled = !self.disabled;
        for key in &self.keys {
            let named = key
                .split_once('/')
                .ok_or_else(|| RecordError::Content(format!("the key {key:?} is not \"service/perspective\"")))?;
            identity.keyring.add(Key::new(named.0, named.1)?);
        }
        if self.credentials.len() > MOST_CREDENTIALS {
            return Err(RecordError::Content(format!("more than {MOST_CREDENTIALS} credentials")));
        }
        for (index, record) in self.credentials.iter().enumerate() {
            let wrong = |why: String| RecordError::Content(format!("credential {}: {why}", index + 1));
            check_label(&record.label).map_err(|error| wrong(error.to_string()))?;
            if record.id >= LAST || self.next >= LAST {
                return Err(wrong("its number, or the next one, is too large".to_owned()));
            }
            if record.created > LATEST || record.expires.is_some_and(|expires| expires > LATEST) {
                return Err(wrong("its times are seconds since 1970, up to the year 9999".to_owned()));
            }
            let proof = record.proof().map_err(wrong)?;
            let id = if record.id == 0 { identity.next } else { record.id };
            identity.next = identity.next.max(id + 1);
            if identity.credentials.iter().any(|has| has.id == id) {
                return Err(RecordError::Content(format!("credential {}: the number {id} occurs twice", index + 1)));
            }
            identity.credentials.push(Credential {
                id,
                label: record.label.clone(),
                created: record.created,
                expires: record.expires,
                proof,
            });
        }
        identity.next = identity.next.max(self.next);
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cred::Token;

    #[test]
    fn an_identity_is_read_as_it_was_written() {
        let mut alice = Identity::new("alice").unwrap();
        alice.keyring.add(Key::new("todo", "work").unwrap());
        alice.enabled = false;
        let verifier = Some(Sealed(vec![1, 2, 3]));
        alice.add(ProofBy::Password { hash: "$argon2id$…".to_owned(), verifier }, "password", 5, None);
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
        alice.add(ProofBy::PublicKey(PublicKey::parse(line).unwrap().0), "laptop", 6, None);
        alice.add(ProofBy::Token(Token::new(&[1; 32]).digest()), "ci", 7, Some(99));
        let (token, service) = ([2; 32], "web".to_owned());
        let login = Remembered { token, service, by: 3, idle: 60, until: 99 };
        alice.add(ProofBy::Login(login), "web:http", 8, Some(68));
        alice.credentials.remove(0);
        let json = serde_json::to_string(&Record::from(&alice)).unwrap();
        let read: Record = serde_json::from_str(&json).unwrap();
        assert_eq!(read.identity().unwrap(), alice);
    }

    #[test]
    fn invalid_identities_are_refused_with_the_reason() {
        let wrong = |json: &str| serde_json::from_str::<Record>(json).unwrap().identity().unwrap_err().to_string();
        assert!(wrong(r#"{"name": "a/b"}"#).contains("it has a `/`"));
        assert!(wrong(r#"{"name": "a", "keys": ["todo"]}"#).contains("service/perspective"));
        assert!(wrong(r#"{"name": "a", "credentials": [{"label": "x"}]}"#).contains("credential 1: a credential has"));
    }
}
