//! The settings, their defaults, and their place: the home folder and its `credhost.toml`.

mod confined;
mod file;
mod fixed;
mod grants;
mod home;
mod key;
mod listen;
mod listener;
mod marks;
mod private;

pub use confined::{Confinements, confinements};
pub use file::{
    AuditSection, ConfigError, ConfigFile, IdentitySection, LimitValue, MultiServiceSection, PasswordSection,
    PbSection, Settings, TlsSection,
};
pub use fixed::Fixed;
pub use grants::Grants;
pub use home::{Home, Lock};
pub use key::{entropy, existing_key, master_key, random, write_key};
pub use listen::{apart, listeners, of_host, own};
pub use listener::{Address, ListenerSettings, networks, proxies};
pub use marks::{Fit, Marks, TlsListen};
pub use private::{HomeError, private};
