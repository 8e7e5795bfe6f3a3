//! What can be set, its default, and where it is kept: the home folder and its `credhost.toml`.

mod file;
mod home;
mod key;

pub use file::{ConfigError, ConfigFile, IdentitySection, PasswordSection, PbSection, Settings, TlsSection};
pub use home::{Home, HomeError, Lock, private};
pub use key::{entropy, existing_key, master_key, random, write_key};
