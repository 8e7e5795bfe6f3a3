//! `credhost.toml`: the settings. Identities that an earlier version kept in it are moved into the store. Comments are
//! preserved.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml_edit::{DocumentMut, Item};

use super::marks::TlsListen;
use super::private::{HomeError, private};
use crate::cred::{HashCost, Identity, Key, ListenerRules, NameError, PasswordRules, ProofBy, RuleError, Sealed};
use crate::plain;

/// The content of a new file.
const TEMPLATE: &str = "\
# Settings of credhost. The host reads them when it starts. When it reloads a service, it also reads the service's section
# [service.NAME], except listen and may. `credhost reload` applies the settings that can change, and names the others.
# Identities and their keys are in store.db: `credhost identity`, `credhost key`.

[pb]
# The address of Perspective Broker without TLS: only for this machine.
listen = \"127.0.0.1:8787\"
# Its address over TLS; needs [tls], or `credhost tls init`. With names or alpn it can share the address with services' listeners.
# listen_tls = \"0.0.0.0:8788\"
# listen_tls = { address = \"0.0.0.0:443\", names = [\"pb.example.org\"] }
# Whether to offer Twisted's own login. It needs md5(password), which the store has encrypted under master.key. Without it,
# clients log in by loginPassword (over TLS or on this machine), loginKey or loginToken.
stock_login = true
# Whether clients on this machine may send passwords and tokens in the clear. Set it to false where a proxy on this machine
# forwards connections of strangers.
# loopback_is_private = true
# Proxies that forward connections and name their source (PROXY protocol, version 1 or 2). Every connection from these
# addresses must begin with a PROXY header.
# proxies = [\"10.0.0.5\", \"192.168.7.0/24\"]
# The service of Twisted's login(\"alice\"), which returns alice's perspective; by default an avatar, whose attach names one.
# default_service = \"todo\"
# The perspective for logins without a name (loginAnonymous).
# anonymous = \"board/guest\"
# Whether errors show clients the place in the service's code: for developers.
# tracebacks = true
# Perspectives that everybody can call without a login, by name; getRootObject() returns root.
# [pb.names]
# root = \"board/guest\"

[password]
# The minimum length of a new password, in characters.
shortest = 15
# The minimum number of guesses that it must withstand, as a power of ten.
guesses = 10
# A file in this folder with refused passwords, one a line.
# blocked = \"blocked.txt\"
# The cost of a hash: memory in KiB, and passes over it. The next login replaces a cheaper hash.
memory = 19456
passes = 2

[plugins]
# The timeout for each step of a library's vetting, in seconds.
patience = 10
# How long waiting calls may continue in replaced code, in seconds.
grace = 10
# Where services run: \"none\": in the host's process, which a crash ends; \"process\": each in its own process; \"sandbox\": each in
# its own process, with only the permissions in allow. A service may have its own setting. `credhost reload` applies a change.
# isolation = \"process\"
# After how many seconds a hanging service is logged; a service in its own process is then restarted, too.
# watchdog = 30

# [limits]
# Limits on clients; `credhost limits` shows all of them, and current use. SIGHUP or `credhost reload` applies changes.
# memory = \"512 MiB\"
# per_source = 256
# A collection's listeners can have their own limits, and so can the host's own listeners: [pb.limits].
# [multiservice.games.limits]
# per_source = 16

# [audit]
# How much of the audit trail to keep: a time or a size. By default everything.
# keep = \"1 year\"
# A folder within this one for dropped lines, in files that can be verified alone. By default they are deleted.
# archive = \"audit\"

# A service's own doors, by the names of its listeners: addresses, or tables (tls, starttls, connections, per_source, login, idle,
# grace, encrypted, message, rate, stalled, mode, proxies, proxy_protocol). Further permissions in may: attach, vouch.
# [service.ssh]
# may = [\"attach\", \"vouch\"]
# isolation = \"sandbox\"
# Its permissions in the sandbox: read:/PATH, write:/PATH, net:tcp:PORT, net:udp, processes.
# allow = [\"read:/etc/ssl\", \"net:tcp:443\"]
# most = { memory = \"512 MiB\", files = 256 }
# [service.chat.listen]
# irc = [\"127.0.0.1:6667\", { address = \"0.0.0.0:6697\", tls = true }]

# A collection of services with its own listener:
# [multiservice.games]
# services = [\"scores\"]
# listen = \"127.0.0.1:8788\"
";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `[pb]`
    pub pb: PbSection,
    /// `[password]`
    pub password: PasswordSection,
    /// `[state]`
    pub state: StateSection,
    /// `[limits]`: values by name; see `limits`.
    #[serde(deserialize_with = "flat")]
    pub limits: BTreeMap<String, LimitValue>,
    /// `[audit]`
    pub audit: AuditSection,
    /// `[tls]`
    pub tls: TlsSection,
    /// `[plugins]`
    pub plugins: PluginsSection,
    /// `[multiservice.NAME]`: collections within the one that contains all services.
    pub multiservice: BTreeMap<String, MultiServiceSection>,
    /// `[service.NAME]`: the service's own settings, which are passed to it unchanged.
    pub service: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
    /// `[identity.NAME]`
    pub identity: BTreeMap<String, IdentitySection>,
}

/// `[pb]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbSection {
    /// The address of Perspective Broker.
    pub listen: String,
    /// Its address over TLS.
    pub listen_tls: Option<TlsListen>,
    /// Whether it may be served in the clear where others can listen.
    pub plaintext: bool,
    /// Whether clients on this machine may send passwords and tokens in the clear. It should be false if a proxy on
    /// this machine forwards connections of strangers.
    pub loopback_is_private: bool,
    /// Addresses or networks of proxies that forward connections, and name the client by the PROXY protocol.
    pub proxies: Vec<String>,
    /// Whether Twisted's own login, by md5(password), is enabled.
    pub stock_login: bool,
    /// The `[multiservice.NAME]` that is served here; by default, all services.
    pub multiservice: Option<String>,
    /// The "service/perspective" that clients get by `loginAnonymous`.
    pub anonymous: Option<String>,
    /// The service that Twisted's `login(name)` leads to if the name contains none.
    pub default_service: Option<String>,
    /// Perspectives, as "service/perspective", that everybody can call by name without a login. `getRootObject` answers
    /// with `root`.
    pub names: BTreeMap<String, String>,
    /// Whether errors tell clients their place in a service's code.
    pub tracebacks: bool,
    /// Limits for these listeners only, instead of those in `[limits]`.
    #[serde(deserialize_with = "flat")]
    pub limits: BTreeMap<String, LimitValue>,
}

impl Default for PbSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8787".to_owned(),
            listen_tls: None,
            plaintext: false,
            loopback_is_private: true,
            proxies: Vec::new(),
            stock_login: true,
            multiservice: None,
            anonymous: None,
            default_service: None,
            names: BTreeMap::new(),
            tracebacks: false,
            limits: BTreeMap::new(),
        }
    }
}

/// `[multiservice.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiServiceSection {
    /// The names of its services.
    pub services: Vec<String>,
    /// The address of Perspective Broker for these services only, if any.
    pub listen: Option<String>,
    /// Its address over TLS.
    pub listen_tls: Option<TlsListen>,
    /// As in `[pb]`.
    pub anonymous: Option<String>,
    /// As in `[pb]`.
    pub default_service: Option<String>,
    /// As in `[pb]`.
    pub names: BTreeMap<String, String>,
    /// As in `[pb]`.
    pub tracebacks: bool,
    /// As in `[pb]`.
    #[serde(deserialize_with = "flat")]
    pub limits: BTreeMap<String, LimitValue>,
}

impl PbSection {
    /// What the listeners of `[pb]` grant in addition to keys.
    ///
    /// # Errors
    /// If a rule is invalid.
    pub fn rules(&self) -> Result<ListenerRules, RuleError> {
        let Self { anonymous, default_service, names, tracebacks, .. } = self;
        ListenerRules::read(anonymous.as_deref(), default_service.as_deref(), names, *tracebacks)
    }
}

impl MultiServiceSection {
    /// What its own listeners grant in addition to keys.
    ///
    /// # Errors
    /// If a rule is invalid.
    pub fn rules(&self) -> Result<ListenerRules, RuleError> {
        let Self { anonymous, default_service, names, tracebacks, .. } = self;
        ListenerRules::read(anonymous.as_deref(), default_service.as_deref(), names, *tracebacks)
    }
}

/// `[password]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PasswordSection {
    /// The minimum length of a new password, in characters.
    pub shortest: usize,
    /// The minimum number of guesses that it must withstand, as a power of ten.
    pub guesses: u32,
    /// A file with refused passwords, one per line, within the home folder.
    pub blocked: Option<String>,
    /// The memory for hashing one password, in KiB.
    pub memory: u32,
    /// The number of passes over this memory.
    pub passes: u32,
    /// The memory for all concurrent password checks, in MiB. It limits their number.
    pub budget: u32,
}

impl Default for PasswordSection {
    fn default() -> Self {
        let (rules, cost) = (PasswordRules::default(), HashCost::LEAST);
        Self {
            shortest: rules.shortest,
            guesses: rules.guesses,
            blocked: None,
            memory: cost.memory,
            passes: cost.passes,
            budget: 128,
        }
    }
}

/// `[state]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateSection {
    /// The largest state of one perspective, or of a service, in bytes.
    pub largest: usize,
}

impl Default for StateSection {
    fn default() -> Self {
        Self { largest: crate::session::Limits::default().slots.services.state }
    }
}

/// `[audit]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// How much of the trail is kept: see [`Keep::parse`](crate::segments::Keep::parse).
    pub keep: Option<String>,
    /// A folder for dropped lines. A relative path is within the home folder.
    pub archive: Option<PathBuf>,
}

/// A value in `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "a limit is a whole number from 0 on, or one with its unit as a text: \"512 MiB\", \"30 s\""
)]
pub enum LimitValue {
    /// A number of bytes, seconds, or items.
    Number(u64),
    /// A number with its unit.
    Text(String),
}

/// The value of one key in `[limits]`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a limit is a whole number from 0 on, or one with its unit as a text: \"512 MiB\", \"30 s\""
)]
enum LimitEntry {
    Value(LimitValue),
    /// Several limits, whose names begin with this key and a dot: `data.value = 5`, or `[limits.data]`.
    Section(BTreeMap<String, LimitEntry>),
}

/// Reads limits by their full names.
fn flat<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, LimitValue>, D::Error> {
    /// The name that is there twice, if one is.
    fn put(
        before: &str,
        section: BTreeMap<String, LimitEntry>,
        all: &mut BTreeMap<String, LimitValue>,
    ) -> Result<(), String> {
        for (key, entry) in section {
            let name = format!("{before}{key}");
            match entry {
                LimitEntry::Value(_) if all.contains_key(&name) => return Err(name),
                LimitEntry::Value(value) => drop(all.insert(name, value)),
                LimitEntry::Section(section) => put(&format!("{name}."), section, all)?,
            }
        }
        Ok(())
    }
    let mut all = BTreeMap::new();
    put("", BTreeMap::deserialize(deserializer)?, &mut all)
        .map_err(|name| D::Error::custom(format!("{name} is set twice")))?;
    Ok(all)
}

/// `[tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// A file with the certificate and the intermediate certificates, in PEM. A relative path is within the home
    /// folder.
    pub certificate: Option<String>,
    /// A file with its key, in PEM.
    pub key: Option<String>,
    /// More certificates with their keys. A client gets the certificate for the name that it asks for in TLS, or else
    /// the first one.
    pub others: Vec<CertificateSection>,
}

/// One of `[tls] others`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateSection {
    /// As in `[tls]`.
    pub certificate: String,
    /// As in `[tls]`.
    pub key: String,
}

/// `[plugins]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginsSection {
    /// How many seconds a library may take for each step of its vetting.
    pub patience: u64,
    /// How many seconds pending calls may continue in replaced code.
    pub grace: u64,
    /// Where services run by default: "none", "process" or "sandbox".
    pub isolation: String,
    /// Where libraries are vetted: "sandbox", or "process" if the machine supports no sandbox.
    pub vetting: String,
    /// After how many seconds the host acts on a service that does not return; 0 for never.
    pub watchdog: u64,
}

impl Default for PluginsSection {
    fn default() -> Self {
        let (grace, isolation) = (crate::multiservice::context::GRACE.as_secs(), "none".to_owned());
        Self { patience: 10, grace, isolation, vetting: "sandbox".to_owned(), watchdog: 30 }
    }
}

/// `[identity.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySection {
    /// An argon2id hash, or an imported bcrypt hash.
    pub password: Option<String>,
    /// md5 of the password, sealed under master.key, in base64.
    pub verifier: Option<String>,
    /// Whether it is disabled.
    pub disabled: bool,
    /// Its keys, each as "service/perspective".
    pub keys: Vec<String>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// Others can read it.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A setting is invalid.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        message: String,
    },
}

/// The file, for editing.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    document: DocumentMut,
}

impl ConfigFile {
    /// Reads the file, and creates it if there is none.
    ///
    /// # Errors
    /// If it cannot be read or created, others can read it, or it is not TOML.
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

    /// Returns the settings in it.
    ///
    /// # Errors
    /// If a setting is invalid, with its place.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        toml_edit::de::from_str(&self.document.to_string())
            .map_err(|error| self.wrong(plain::words(&error.to_string())))
    }

    /// Returns the settings as plain values.
    pub(super) fn values(&self) -> serde_json::Map<String, serde_json::Value> {
        toml_edit::de::from_str(&self.document.to_string()).unwrap_or_default()
    }

    /// Returns the identities in it.
    ///
    /// # Errors
    /// If one of them is invalid.
    pub fn identities(&self) -> Result<Vec<Identity>, ConfigError> {
        let settings = self.settings()?;
        settings.identity.into_iter().map(|(name, section)| self.identity(&name, section)).collect()
    }

    fn identity(&self, name: &str, section: IdentitySection) -> Result<Identity, ConfigError> {
        let at = |what: String| self.wrong(format!("[identity.{name}]: {what}"));
        let mut identity = Identity::new(name).map_err(|error| at(error.to_string()))?;
        identity.enabled = !section.disabled;
        let verifier = section
            .verifier
            .map(|text| data_encoding::BASE64.decode(text.as_bytes()).map(Sealed))
            .transpose()
            .map_err(|error| at(format!("verifier is not base64: {error}")))?;
        if let Some(hash) = section.password {
            identity.add(ProofBy::Password { hash, verifier }, "password", 0, None);
        }
        for key in section.keys {
            let named =
                key.split_once('/').ok_or_else(|| at(format!("the key {key:?} is not \"service/perspective\"")))?;
            let key: Result<Key, NameError> = Key::new(named.0, named.1);
            identity.keyring.add(key.map_err(|error| at(error.to_string()))?);
        }
        Ok(identity)
    }

    /// Removes an identity from the document.
    pub fn take(&mut self, name: &str) {
        if let Some(table) = self.document.get_mut("identity").and_then(Item::as_table_like_mut) {
            table.remove(name);
            if table.is_empty() {
                self.document.remove("identity");
            }
        }
    }

    /// Writes the file, completely or not at all.
    ///
    /// # Errors
    /// If it cannot be written. It is then unchanged.
    pub fn save(&self) -> Result<(), ConfigError> {
        write(&self.path, &self.document.to_string())
            .map_err(|error| ConfigError::Io { path: self.path.clone(), error })
    }

    /// Creates an error about the content of the file.
    #[must_use]
    pub fn wrong(&self, message: String) -> ConfigError {
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
    fn comments_stay_when_an_identity_is_removed() {
        let (_folder, mut file) = file(
            "# mine\n[pb] # the door\nlisten = \"127.0.0.1:1\" # here\n\n[identity.alice]\nkeys = [\"todo/alice\"]\n",
        );
        let alice = file.identities().unwrap().remove(0);
        assert!(alice.keyring.has(&Key::new("todo", "alice").unwrap()));
        file.take("alice");
        file.save().unwrap();
        let text = fs::read_to_string(&file.path).unwrap();
        for comment in ["# mine", "# the door", "# here"] {
            assert!(text.contains(comment), "{comment} in {text}");
        }
        assert!(!text.contains("alice") && !text.contains("identity"), "{text}");
        assert!(ConfigFile::open(&file.path).unwrap().identities().unwrap().is_empty());
    }

    #[test]
    fn errors_in_the_configuration_file_name_their_place() {
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
