//! `credhost.toml`: settings, and identities until there is a database. Comments stay when commands edit it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::home::{HomeError, private};
use crate::cred::{Identity, Key, NameError, Sealed};

/// What a new file says.
const TEMPLATE: &str = "\
# credhost: settings and identities. Commands edit this file and keep its comments.
# A host that runs reads it at its start; change identities with `credhost identity` and `credhost key`.

[pb]
# Where Perspective Broker is served.
listen = \"127.0.0.1:8787\"

[password]
# The fewest characters of a new password.
shortest = 15

[plugins]
# How many seconds a library may take for each step of its vetting.
patience = 10

# Some services in a collection of their own, with a door of its own:
# [multiservice.games]
# services = [\"scores\"]
# listen = \"127.0.0.1:8788\"
";

/// Everything in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `[pb]`
    pub pb: PbSection,
    /// `[password]`
    pub password: PasswordSection,
    /// `[plugins]`
    pub plugins: PluginsSection,
    /// `[multiservice.NAME]`: collections inside of the one that has all.
    pub multiservice: BTreeMap<String, MultiServiceSection>,
    /// `[service.NAME]`: the service's own, handed to it as it is.
    pub service: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
    /// `[identity.NAME]`
    pub identity: BTreeMap<String, IdentitySection>,
}

/// `[pb]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbSection {
    /// Where Perspective Broker is served.
    pub listen: String,
    /// Whether it may be served in the clear where others can listen.
    pub plaintext: bool,
    /// The `[multiservice.NAME]` that is served here; all services, if none is named.
    pub multiservice: Option<String>,
}

impl Default for PbSection {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8787".to_owned(), plaintext: false, multiservice: None }
    }
}

/// `[multiservice.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiServiceSection {
    /// The names of the services that belong to it.
    pub services: Vec<String>,
    /// Where Perspective Broker is served for these alone, if anywhere.
    pub listen: Option<String>,
}

/// `[password]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PasswordSection {
    /// The fewest characters of a new password.
    pub shortest: usize,
}

impl Default for PasswordSection {
    fn default() -> Self {
        Self { shortest: 15 }
    }
}

/// `[plugins]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginsSection {
    /// How many seconds a library may take for each step of its vetting.
    pub patience: u64,
}

impl Default for PluginsSection {
    fn default() -> Self {
        Self { patience: 10 }
    }
}

/// `[identity.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySection {
    /// An argon2id hash.
    pub password: Option<String>,
    /// md5 of the password, sealed under master.key, in base64.
    pub verifier: Option<String>,
    /// Whether it may not log in.
    pub disabled: bool,
    /// "service/perspective" each.
    pub keys: Vec<String>,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others can read it.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// It says something that cannot be.
    #[error("{path}: {message}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
}

/// The file as it stands, to be edited.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    document: DocumentMut,
}

impl ConfigFile {
    /// Reads the file; makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be read or made, others can read it, or it is no TOML.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        if !path.exists() {
            write(path, TEMPLATE).map_err(|error| ConfigError::Io { path: path.to_owned(), error })?;
        }
        private(path, 0o600)?;
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Io { path: path.to_owned(), error })?;
        let document = text.parse().map_err(|error: toml_edit::TomlError| ConfigError::Content {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// What it says.
    ///
    /// # Errors
    /// When it says something that cannot be, with the place.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        toml_edit::de::from_str(&self.document.to_string()).map_err(|error| self.wrong(error.to_string()))
    }

    /// The identities in it.
    ///
    /// # Errors
    /// When one of them cannot be.
    pub fn identities(&self) -> Result<Vec<Identity>, ConfigError> {
        let settings = self.settings()?;
        settings.identity.into_iter().map(|(name, section)| self.identity(&name, section)).collect()
    }

    fn identity(&self, name: &str, section: IdentitySection) -> Result<Identity, ConfigError> {
        let at = |what: String| self.wrong(format!("[identity.{name}]: {what}"));
        let mut identity = Identity::new(name).map_err(|error| at(error.to_string()))?;
        identity.enabled = !section.disabled;
        identity.password = section.password;
        identity.verifier = section
            .verifier
            .map(|text| data_encoding::BASE64.decode(text.as_bytes()).map(Sealed))
            .transpose()
            .map_err(|error| at(format!("verifier is not base64: {error}")))?;
        for key in section.keys {
            let named =
                key.split_once('/').ok_or_else(|| at(format!("the key {key:?} is not \"service/perspective\"")))?;
            let key: Result<Key, NameError> = Key::new(named.0, named.1);
            identity.keyring.add(key.map_err(|error| at(error.to_string()))?);
        }
        Ok(identity)
    }

    /// Writes an identity into the document: its section is made, or changed in place.
    pub fn put(&mut self, identity: &Identity) {
        let table = self.document.entry("identity").or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let section = &mut table[identity.name.as_str()];
        if !section.is_table_like() {
            *section = Item::Table(Table::new());
        }
        let mut set = |key: &str, new: Option<toml_edit::Value>| match new {
            Some(new) => match section.get_mut(key).and_then(Item::as_value_mut) {
                // What stands around a value, a comment behind it say, stays.
                Some(old) => {
                    let decor = old.decor().clone();
                    *old = new;
                    *old.decor_mut() = decor;
                }
                None => section[key] = value(new),
            },
            None => {
                if let Some(table) = section.as_table_like_mut() {
                    table.remove(key);
                }
            }
        };
        set("password", identity.password.as_deref().map(Into::into));
        let verifier = identity.verifier.as_ref().map(|sealed| data_encoding::BASE64.encode(&sealed.0));
        set("verifier", verifier.map(Into::into));
        set("disabled", (!identity.enabled).then(|| true.into()));
        let keys: Array = identity.keyring.keys().map(|key| format!("{}/{}", key.service, key.perspective)).collect();
        set("keys", Some(toml_edit::Value::Array(keys)));
    }

    /// Takes an identity out of the document.
    pub fn take(&mut self, name: &str) {
        if let Some(table) = self.document.get_mut("identity").and_then(Item::as_table_like_mut) {
            table.remove(name);
        }
    }

    /// Writes the file: whole, or not at all.
    ///
    /// # Errors
    /// When it cannot be written; it is then as it was.
    pub fn save(&self) -> Result<(), ConfigError> {
        write(&self.path, &self.document.to_string())
            .map_err(|error| ConfigError::Io { path: self.path.clone(), error })
    }

    fn wrong(&self, message: String) -> ConfigError {
        ConfigError::Content { path: self.path.clone(), message }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let new = folder.join(".credhost.toml.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, ConfigFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credhost.toml");
        write(&path, text).unwrap();
        let file = ConfigFile::open(&path).unwrap();
        (folder, file)
    }

    #[test]
    fn comments_stay_when_an_identity_changes() {
        let (_folder, mut file) = file(
            "# mine\n[pb] # the door\nlisten = \"127.0.0.1:1\" # here\n\n# she is nice\n[identity.alice]\n# her keys\nkeys = [\"todo/alice\"] # one\n",
        );
        let mut alice = file.identities().unwrap().remove(0);
        alice.keyring.add(Key::new("todo", "work").unwrap());
        file.put(&alice);
        file.put(&Identity::new("bob").unwrap());
        file.save().unwrap();
        let text = fs::read_to_string(&file.path).unwrap();
        for comment in ["# mine", "# the door", "# here", "# she is nice", "# her keys", "# one"] {
            assert!(text.contains(comment), "{comment} in {text}");
        }
        let again = ConfigFile::open(&file.path).unwrap().identities().unwrap();
        assert_eq!(again[0], alice);
        assert_eq!(again[1].name.as_str(), "bob");
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place() {
        let (_folder, odd) = file("[pb]\nlisen = \"127.0.0.1:1\"\n");
        let message = odd.settings().unwrap_err().to_string();
        assert!(message.contains("lisen") && message.contains("line 2"), "{message}");
        let (_folder, odd) = file("[identity.alice]\nkeys = [\"todo\"]\n");
        let message = odd.identities().unwrap_err().to_string();
        assert!(message.contains("[identity.alice]") && message.contains("service/perspective"), "{message}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, file) = file("");
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o644)).unwrap();
        let message = ConfigFile::open(&file.path).unwrap_err().to_string();
        assert!(message.contains("mode 644") && message.contains("chmod 600"), "{message}");
    }
}
