//! The configuration that a host starts with. It is read from its home, and checked completely before anything is
//! opened.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::ServerConfig;

use super::options::{Options, SELF, StartError};
use super::retention::Retention;
use crate::accounts::Accounts;
use crate::config::proxies;
use crate::config::{self, Address, Confinements, Home, ListenerSettings, Marks, Settings, TlsListen};
use crate::control;
use crate::cred::ListenerRules;
use crate::doors::{socket_name, wanted_socket};
use crate::folder;
use crate::limits::{self, LimitError};
use crate::listener::tls::{CertificateFiles, Certificates};
use crate::loader::vet::{Sections, Vet};
use crate::session::Limits;
use crate::successor::{Inherited, Wanted};

/// One of the host's own listeners.
pub(super) struct Door {
    /// The name of its socket, also for the next host.
    pub(super) name: String,
    addresses: Vec<SocketAddr>,
    /// The address as configured.
    shown: String,
    /// The marks of its connections, if it uses TLS.
    pub(super) tls: Option<Marks>,
    /// The `[multiservice.NAME]` that is served there. `None` for all services.
    pub(super) of: Option<String>,
    /// The `[multiservice.NAME]` section with this listener's rules. `None`: they are in `[pb]`.
    pub(super) section: Option<String>,
    pub(super) rules: ListenerRules,
}

/// See the module's page.
pub(super) struct Configured {
    pub(super) settings: Settings,
    /// The first is the one that every host has.
    pub(super) doors: Vec<Door>,
    pub(super) of_services: Vec<ListenerSettings>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) proxies: Vec<IpNet>,
    pub(super) retention: Option<Retention>,
    pub(super) sections: Sections,
    pub(super) confinements: Confinements,
    pub(super) vet: Vet,
}

impl Configured {
    /// Reads everything, and opens nothing.
    pub(super) fn read(home: &Home, settings: Settings, options: &Options) -> Result<Self, StartError> {
        let wrong = StartError::Section;
        let of_services = config::listeners(&settings).map_err(wrong)?;
        let doors = doors(&settings, options)?;
        config::apart(&doors.iter().map(Door::settings).collect::<Vec<_>>(), &of_services).map_err(wrong)?;
        let over_tls =
            doors.iter().any(|door| door.tls.is_some()) || of_services.iter().any(|one| one.tls || one.starttls);
        let certificates = over_tls.then(|| certificates(home, &settings)).transpose()?;
        let configured = Self {
            doors,
            certificates,
            of_services,
            proxies: proxies(&settings.pb.proxies).map_err(wrong)?,
            retention: Retention::of(home, &settings.audit).map_err(wrong)?,
            sections: folder::sections(&settings).map_err(|fault| wrong(fault.to_string()))?,
            confinements: config::confinements(&settings).map_err(wrong)?,
            vet: vet(&settings, options)?,
            settings,
        };
        // Their validity does not depend on the delay of refusals.
        let limits = configured.limits(Duration::ZERO)?;
        for door in &configured.doors {
            limits_of(&configured.settings, door.section.as_deref(), limits).map_err(wrong)?;
        }
        Ok(configured)
    }

    /// The limits of clients. `refusal` is the time after which refusals are sent.
    pub(super) fn limits(&self, refusal: Duration) -> Result<Limits, StartError> {
        limits::of_host(refusal, &self.settings).map_err(|error: LimitError| StartError::Section(error.to_string()))
    }

    /// The time limit for each step of a service's life.
    pub(super) fn patience(&self) -> Duration {
        patience(&self.settings)
    }

    /// Opens the sockets of all listeners. Listeners at the same address share one.
    pub(super) fn open_all(&self, options: &Options) -> Result<Vec<Opened>, StartError> {
        let mut all = Vec::<Opened>::new();
        for door in &self.doors {
            let settings = door.settings();
            let same = all.iter().find(|other| other.settings.shares(&settings.address));
            let (socket, first) = match same {
                Some(other) => (other.socket.try_clone()?, false),
                None => (self.open(door, options)?, true),
            };
            let others = self.doors.iter().filter(|other| !std::ptr::eq(*other, door)).map(Door::settings);
            let shared = others.chain(self.of_services.clone()).any(|other| settings.shares(&other.address));
            let tls = self.certificates.as_ref().filter(|_| settings.tls);
            let tls = tls.map(|certificates| certificates.config_for(&settings.marks.alpn, false));
            all.push(Opened { settings, socket, first, shared, tls });
        }
        Ok(all)
    }

    /// Opens a listener's socket, or takes the inherited one.
    fn open(&self, door: &Door, options: &Options) -> Result<TcpListener, StartError> {
        if let Some(listener) = options.inherited.take_tcp(&door.wanted()) {
            return Ok(listener);
        }
        let failed = |error| StartError::Listen { address: door.shown.clone(), error };
        let listener = TcpListener::bind(door.addresses.as_slice()).map_err(failed)?;
        // The longest backlog that the system allows: the standard library's is short.
        rustix::net::listen(&listener, i32::MAX).map_err(|error| failed(error.into()))?;
        Ok(listener)
    }

    /// Closes inherited sockets that no listener in these settings wants. Returns their names.
    pub(super) fn close_others(&self, inherited: &Inherited) -> Vec<String> {
        let names: Vec<String> = self.of_services.iter().map(socket_name).collect();
        let of_services = self.of_services.iter().zip(&names).map(|(one, name)| wanted_socket(one, name));
        let wanted: Vec<Wanted<'_>> = self.doors.iter().map(Door::wanted).chain(of_services).collect();
        inherited.close_others(&wanted)
    }

    /// Tries to listen on every address, except those in `taken`, where the running host listens, which makes way.
    fn can_listen(&self, taken: &[SocketAddr]) -> Result<(), StartError> {
        let free = |addresses: &[SocketAddr]| {
            let theirs = |one: &SocketAddr| taken.iter().any(|taken| taken.port() == one.port());
            if addresses.iter().any(theirs) { Ok(()) } else { TcpListener::bind(addresses).map(drop) }
        };
        for door in &self.doors {
            free(&door.addresses).map_err(|error| StartError::Listen { address: door.shown.clone(), error })?;
        }
        for one in &self.of_services {
            if let Address::Tcp(addresses) = &one.address {
                let failed = |error| {
                    let (service, name, shown) = (&one.service, &one.name, &one.shown);
                    StartError::Section(format!("[service.{service}.listen] {name}: cannot listen on {shown}: {error}"))
                };
                free(addresses).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A listener whose socket is open.
pub(super) struct Opened {
    /// Its settings, to be compared with others at the same address.
    pub(super) settings: ListenerSettings,
    pub(super) socket: TcpListener,
    /// Whether it is the first at its address. Its socket is passed to the next host.
    pub(super) first: bool,
    /// Whether others share its address.
    pub(super) shared: bool,
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Door {
    /// Its settings, to be compared with others at the same address.
    fn settings(&self) -> ListenerSettings {
        let place = self.name.split(" = ").next().unwrap_or_default();
        ListenerSettings::of_host(place, &self.shown, self.addresses.clone(), self.tls.clone())
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted::Tcp(&self.name, &self.addresses)
    }
}

/// The environment variable in which a host tells another program its own addresses when it asks whether that program
/// could take over: a list of addresses in JSON.
pub(super) const LISTENING: &str = "CREDHOST_LISTENING";

/// Checks whether a host could start in this home. Changes nothing. A host may be running there.
///
/// # Errors
/// The first reason why it could not.
pub fn check(home: &Home, options: &Options) -> Result<(), StartError> {
    let configured = Configured::read(home, Accounts::examine(home)?, options)?;
    match std::env::var(LISTENING).ok().and_then(|taken| serde_json::from_str::<Vec<SocketAddr>>(&taken).ok()) {
        Some(taken) => configured.can_listen(&taken),
        // The running host has the sockets, and does not say which.
        None if control::is_served(&home.control()) => Ok(()),
        None => configured.can_listen(&[]),
    }
}

fn patience(settings: &Settings) -> Duration {
    Duration::from_secs(settings.plugins.patience.max(1))
}

fn vet(settings: &Settings, options: &Options) -> Result<Vet, StartError> {
    let program = options.vetter.clone().unwrap_or_else(|| SELF.into());
    let isolation = settings.plugins.vetting.parse();
    let isolation = isolation.map_err(|why| StartError::Section(format!("[plugins] vetting = {why}")))?;
    Ok(Vet::new(program, patience(settings)).within(isolation))
}

/// The name of the section: `[multiservice.NAME]`, or `[pb]`.
pub(super) fn place(section: Option<&str>) -> String {
    section.map_or_else(|| "pb".to_owned(), |name| format!("multiservice.{name}"))
}

/// The rules of a section's listeners. `None` if there is no such section.
///
/// # Errors
/// If they are invalid.
pub(super) fn rules_of(settings: &Settings, section: Option<&str>) -> Option<Result<ListenerRules, StartError>> {
    let rules = match section {
        None => settings.pb.rules(),
        Some(name) => settings.multiservice.get(name)?.rules(),
    };
    Some(rules.map_err(|wrong| StartError::Section(format!("[{}] {wrong}", place(section)))))
}

/// The limits of a section's listeners. `all` are the limits of all others.
///
/// # Errors
/// If they are invalid.
pub(super) fn limits_of(settings: &Settings, section: Option<&str>, all: Limits) -> Result<Limits, String> {
    let own = match section {
        None => Some(&settings.pb.limits),
        Some(name) => settings.multiservice.get(name).map(|section| &section.limits),
    };
    own.map_or(Ok(all), |own| limits::of_listeners(all, &place(section), own))
}

fn doors(settings: &Settings, options: &Options) -> Result<Vec<Door>, StartError> {
    let plaintext = options.plaintext || settings.pb.plaintext;
    let door = |section: Option<&String>,
                key: &str,
                shown: &str,
                tls: Option<Marks>,
                of: Option<&String>,
                rules: &ListenerRules| {
        let place = place(section.map(String::as_str));
        let failed = |error| StartError::Listen { address: shown.to_owned(), error };
        let addresses: Vec<SocketAddr> = shown.to_socket_addrs().map_err(failed)?.collect();
        match addresses.iter().find(|found| !found.ip().is_loopback()) {
            Some(open) if tls.is_none() && !plaintext => Err(StartError::Plaintext(*open)),
            _ => Ok(Door {
                name: format!("[{place}] {key} = {shown:?}"),
                addresses,
                shown: shown.to_owned(),
                tls,
                of: of.cloned(),
                section: section.cloned(),
                rules: rules.clone(),
            }),
        }
    };
    let pb = &settings.pb;
    let rules = rules_of(settings, None).transpose()?.unwrap_or_default();
    let of = pb.multiservice.as_ref();
    if let Some(name) = of.filter(|name| !settings.multiservice.contains_key(*name)) {
        let none = format!("[pb] multiservice = {name:?}: there is no [multiservice.{name}] in credhost.toml");
        return Err(StartError::Section(none));
    }
    let mut all = vec![door(None, "listen", options.listen.as_ref().unwrap_or(&pb.listen), None, of, &rules)?];
    let listen_tls = pb.listen_tls.as_ref();
    if let Some(address) = options.listen_tls.as_ref().or(listen_tls.map(|listen| &listen.address)) {
        let marks = listen_tls.map(|listen| listen.marks.clone()).unwrap_or_default();
        all.push(door(None, "listen_tls", address, Some(marks), of, &rules)?);
    }
    for (name, section) in &settings.multiservice {
        let rules = rules_of(settings, Some(name)).transpose()?.unwrap_or_default();
        if let Some(address) = &section.listen {
            all.push(door(Some(name), "listen", address, None, Some(name), &rules)?);
        }
        if let Some(TlsListen { address, marks }) = &section.listen_tls {
            all.push(door(Some(name), "listen_tls", address, Some(marks.clone()), Some(name), &rules)?);
        }
    }
    Ok(all)
}

fn certificates(home: &Home, settings: &Settings) -> Result<Arc<Certificates>, StartError> {
    let files = home.certificates(&settings.tls);
    for (_, key) in files.iter().filter(|(_, key)| key.exists()) {
        config::private(key, 0o600)?;
    }
    let files = files.into_iter().map(|(certificate, key)| CertificateFiles { certificate, key }).collect();
    Ok(Certificates::load_all(files)?)
}
