//! Checks that tell an operator about problems in advance.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::accounts::Accounts;
use crate::asked_name::name_fits;
use crate::config::proxies;
use crate::config::{self, Address, ConfigFile, Home, ListenerSettings, Settings, private};
use crate::control::{LibraryStatus, known};
use crate::health;
use crate::limits;
use crate::listener::tls::{self, Certificates};
use crate::multiservice::ended::Unreleased;
use crate::segments::Keep;
use crate::session::Limits;
use crate::show::many;
use crate::store::now;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// "ok", "warning" or "wrong".
    pub level: String,
    /// The result.
    pub what: String,
    /// The advice.
    pub hint: Option<String>,
}

fn finding(level: &str, what: impl Into<String>, hint: Option<&str>) -> Finding {
    Finding { level: level.to_owned(), what: what.into(), hint: hint.map(str::to_owned) }
}

/// Checks everything about a home. `progress` is called with the number of identities that were checked.
#[must_use]
pub fn examine(accounts: &Accounts, progress: &mut dyn FnMut(u64)) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match accounts.store().check() {
        Ok(()) => finding("ok", "the store is sound", None),
        Err(error) => finding("wrong", error.to_string(), Some("`credhost restore FILE` goes back to a backup")),
    });
    found.push(verifiers(accounts, progress));
    if accounts.key().parts() > 1 {
        let what = "the replacement of master.key was interrupted: some secrets are still encrypted under the old key";
        found.push(finding("warning", what, Some("`credhost master-key replace` continues it")));
    }
    if let Some(weaker) = accounts.rules().weaker_than_standard() {
        found.push(finding("warning", weaker, Some("[password] shortest in credhost.toml")));
    }
    found.extend(files(accounts.home()));
    found
}

/// Checks the services of a running host.
#[must_use]
pub fn services(libraries: &[LibraryStatus], held: &[Unreleased]) -> Vec<Finding> {
    let mut found: Vec<Finding> = health::report()
        .into_iter()
        .map(|what| finding("warning", what, Some("the log of `credhost run` shows when")))
        .collect();
    for library in libraries {
        let name = library.service.as_deref().unwrap_or(&library.file);
        if let Some((level, hint)) = not_serving(&library.state) {
            found.push(finding(level, format!("{name}: {}", library.state), Some(hint)));
        }
        if let Some(note) = &library.note {
            // What vetting has noted is no fault of the file's.
            let hint = library.instead.then_some("put the library that should serve into the folder");
            found.push(finding("warning", format!("{name}: {note}"), hint));
        }
        if library.crashes > 0 {
            let how = library.crashed.as_deref().unwrap_or("ended");
            let times = many(usize::try_from(library.crashes).unwrap_or(usize::MAX), "time", "times");
            let what = format!("{name} has crashed {times} since the host started; the last time it {how}");
            found.push(finding(
                "warning",
                what,
                Some("`credhost service show NAME` shows the last crash, `credhost audit show` all"),
            ));
        }
        for listener in library.listeners.iter().filter(|listener| !listener.taken && library.state == "serving") {
            let what = format!("{name} has no listener {}: its connections wait in vain", listener.name);
            found.push(finding("warning", what, Some("`credhost service show NAME` shows the listeners that it has")));
        }
        if !library.unreadable.is_empty() {
            let what = format!(
                "{name} cannot read {}; their owners cannot attach",
                many(library.unreadable.len(), "saved state", "saved states")
            );
            found.push(finding(
                "wrong",
                what,
                Some("`credhost service show NAME` names them; `credhost service rollback NAME` goes back"),
            ));
        }
    }
    for Unreleased { service, generation, account } in held {
        let what = format!("{service}, generation {generation}, stays in memory: {account}");
        found.push(finding(
            "warning",
            what,
            Some("GUIDE.md explains what keeps a library in memory; a restart of the host frees it"),
        ));
    }
    if found.is_empty() && !libraries.is_empty() {
        found.push(finding(
            "ok",
            match libraries {
                [one] => format!("{} serves", one.service.as_deref().unwrap_or(&one.file)),
                all => format!("all {} services serve", all.len()),
            },
            None,
        ));
    }
    found
}

/// The level of a library's state, and advice. `None`: the service serves.
fn not_serving(state: &str) -> Option<(&'static str, &'static str)> {
    Some(match state.split_once(':').map_or(state, |(kind, _)| kind) {
        "serving" => return None,
        "stopped" => ("warning", "`credhost service start NAME` starts it"),
        "being vetted" | "starting" => ("warning", "look again in a moment"),
        "waits" if state.contains("it needs") => {
            ("wrong", "put the library of the service that it needs into the folder")
        }
        "waits" => ("wrong", "`credhost service show NAME` shows the last crash"),
        "failed" => {
            ("wrong", "`credhost service start NAME` starts it again; the log of `credhost run` has the reason")
        }
        "refused" => ("wrong", "replace the file with a library that loads, or remove it"),
        // It serves, but something delays it.
        _ => ("wrong", "wait, or `credhost service stop NAME` and `credhost service start NAME`"),
    })
}

/// Checks the files of a home. This works even if its store cannot be opened.
#[must_use]
pub fn files(home: &Home) -> Vec<Finding> {
    let mut found = Vec::new();
    settings(home, &mut found);
    let beside = |ending: &str| PathBuf::from(format!("{}{ending}", home.store().display()));
    let head = home.store().with_file_name("audit.head");
    let secret = [home.master_key(), home.store(), beside("-wal"), beside("-shm"), head, home.tls().join("ca.key")];
    for file in secret.iter().filter(|file| file.exists()) {
        if let Err(error) = private(file, 0o600) {
            found.push(finding("wrong", error.to_string(), None));
        }
    }
    let space = rustix::fs::statvfs(home.path()).map(|about| about.f_bavail.saturating_mul(about.f_frsize));
    found.push(match space {
        Ok(free) if free < 100 << 20 => {
            let what = format!("the disk has {} MiB left: changes will soon be refused", free >> 20);
            finding("wrong", what, Some("make room where the home folder is"))
        }
        Ok(free) => finding("ok", format!("the disk has {} MiB left", free >> 20), None),
        Err(error) => finding("warning", format!("the free space of the disk is unknown: {error}"), None),
    });
    // A host creates it at its first start.
    let reserve = crate::store::reserve(&home.store());
    if std::fs::metadata(&reserve).is_ok_and(|file| file.len() == 0) {
        let what = "the reserved disk space is in use: only revocations are committed".to_owned();
        found.push(finding("wrong", what, Some("make room where the home folder is")));
    }
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if descriptors.is_some_and(|most| most < 10_100) {
        let what = format!("only {} files and connections can be open at once", descriptors.unwrap_or(0));
        found.push(finding("warning", what, Some("raise the limit: `ulimit -n`, or LimitNOFILE= of systemd")));
    }
    found
}

fn verifiers(accounts: &Accounts, progress: &mut dyn FnMut(u64)) -> Finding {
    const PAGE: usize = 1000;
    let (mut seen, mut wrong, mut after) = (0, Vec::new(), None::<String>);
    loop {
        let page = match accounts.page(after.as_deref(), PAGE) {
            Ok(page) => page,
            Err(error) => {
                return finding("wrong", error.to_string(), Some("`credhost restore FILE` goes back to a backup"));
            }
        };
        for identity in &page {
            let sealed =
                identity.verifiers(0).any(|(_, sealed)| sealed.open(accounts.key(), identity.name.as_str()).is_err());
            if sealed {
                wrong.push(identity.name.to_string());
            }
        }
        seen += page.len() as u64;
        progress(seen);
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.name.to_string()),
            _ => break,
        }
    }
    match wrong.as_slice() {
        [] => finding("ok", "master.key decrypts all secrets", None),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let what = format!("master.key cannot decrypt the secrets of {first}{more}");
            finding("wrong", what, Some("restore master.key from a backup, or set the passwords again"))
        }
    }
}

/// How long before its expiry a certificate should be renewed, in seconds.
const CERTIFICATE_WARNING: u64 = 30 * 86_400;

fn certificate(path: &Path, key: &Path) -> Finding {
    let until = match Certificates::load(path, key).and_then(|_| tls::until(path)) {
        Ok(until) => until,
        Err(error) => return finding("wrong", error.to_string(), Some("`credhost tls init` makes a certificate")),
    };
    let (shown, left) = (path.display(), until.saturating_sub(now()));
    let hint = Some("renew it, or run `credhost tls init`; a running host loads it automatically");
    let days = many(usize::try_from(left / 86_400).unwrap_or(usize::MAX), "day", "days");
    match left {
        0 => finding("wrong", format!("{shown} has expired"), hint),
        left if left < CERTIFICATE_WARNING => finding("warning", format!("{shown} expires in {days}"), hint),
        _ => finding("ok", format!("{shown} and its key are valid for {days}"), None),
    }
}

/// Reports sections of credhost.toml for services that do not exist. `libraries` are those of the running host.
#[must_use]
pub fn sections(home: &Home, libraries: Option<&[LibraryStatus]>) -> Vec<Finding> {
    if !home.config().exists() {
        return Vec::new();
    }
    let Ok(settings) = ConfigFile::open(&home.config()).and_then(|file| file.settings()) else { return Vec::new() };
    let strange = known::sections_of_none(&settings, &known::services(home, libraries));
    strange
        .into_iter()
        .map(|what| finding("warning", what, Some("`credhost service list` shows their names")))
        .collect()
}

/// Settings that can be read, but prevent a host from starting.
fn unusable(settings: &Settings) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Err(error) = limits::of_host(Limits::default().refusal, settings) {
        wrong.push(error.to_string());
    }
    let sections = settings.multiservice.iter().map(|(name, one)| (format!("multiservice.{name}"), &one.limits));
    for (place, section) in sections.chain([("pb".to_owned(), &settings.pb.limits)]) {
        wrong.extend(limits::of_listeners(Limits::default(), &place, section).err());
    }
    if let Some(Err(error)) = settings.audit.keep.as_deref().map(Keep::parse) {
        wrong.push(format!("[audit] keep: {error}"));
    }
    let rules = settings.multiservice.iter().map(|(name, section)| (format!("multiservice.{name}"), section.rules()));
    for (place, rules) in rules.chain([("pb".to_owned(), settings.pb.rules())]) {
        wrong.extend(rules.err().map(|error| format!("[{place}] {error}")));
    }
    wrong.extend(config::listeners(settings).err());
    wrong.extend(config::confinements(settings).err());
    if let Err(error) = proxies(&settings.pb.proxies) {
        wrong.push(error);
    }
    if let Some(name) = settings.pb.multiservice.as_ref().filter(|name| !settings.multiservice.contains_key(*name)) {
        wrong.push(format!("[pb] multiservice = {name:?}: there is no [multiservice.{name}]"));
    }
    let more = settings.multiservice.iter().flat_map(|(name, section)| {
        let over_tls = section.listen_tls.as_ref().map(|listen| &listen.address);
        let addresses = [("listen", section.listen.as_ref()), ("listen_tls", over_tls)];
        addresses.into_iter().filter_map(move |(key, address)| Some((format!("[multiservice.{name}] {key}"), address?)))
    });
    let over_tls = settings.pb.listen_tls.as_ref().map(|listen| &listen.address);
    let own = [("[pb] listen", Some(&settings.pb.listen)), ("[pb] listen_tls", over_tls)];
    let own = own.into_iter().filter_map(|(place, address)| Some((place.to_owned(), address?)));
    for (place, address) in own.chain(more) {
        let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if port.is_none_or(|(host, _)| host.is_empty()) {
            wrong.push(format!("{place} = {address:?} is not ADDRESS:PORT, such as \"127.0.0.1:8787\""));
        }
    }
    wrong
}

fn settings(home: &Home, found: &mut Vec<Finding>) {
    // Opening it would create one.
    if !home.config().exists() {
        return;
    }
    let settings = match ConfigFile::open(&home.config()).and_then(|file| file.settings()) {
        Ok(settings) => settings,
        Err(error) => return found.push(finding("wrong", error.to_string(), Some("correct credhost.toml"))),
    };
    let apart = config::listeners(&settings).and_then(|all| config::apart(&config::of_host(&settings), &all));
    if let (Err(why), true) = (apart, config::listeners(&settings).is_ok()) {
        let hint = "the host does not start with it, unless --listen or --listen-tls names another address";
        found.push(finding("wrong", why, Some(hint)));
    }
    for wrong in unusable(&settings) {
        found.push(finding("wrong", wrong, Some("correct credhost.toml: the host does not start with it")));
    }
    let of_services = config::listeners(&settings).unwrap_or_default();
    let wanted = settings.pb.listen_tls.is_some()
        || settings.multiservice.values().any(|section| section.listen_tls.is_some())
        || of_services.iter().any(|one| one.tls || one.starttls);
    look_at_certificates(home, &settings, wanted, &of_services, found);
    found.extend(of_services.iter().filter_map(believed));
    if settings.pb.plaintext {
        let what = "[pb] plaintext = true: an eavesdropper on the network reads everything but passwords";
        found.push(finding("warning", what, Some("use listen_tls")));
    }
    if settings.pb.stock_login {
        let what = "Twisted's own login is enabled: anyone with store.db and master.key can log in as anybody";
        found.push(finding("ok", what, Some("[pb] stock_login = false, if no client needs it")));
    }
}

/// Checks each certificate, and whether the certificates cover the names of listeners.
fn look_at_certificates(
    home: &Home,
    settings: &Settings,
    wanted: bool,
    of_services: &[ListenerSettings],
    found: &mut Vec<Finding>,
) {
    // All names, with the first file that has each.
    let mut named: Vec<(String, (usize, PathBuf))> = Vec::new();
    let hint = Some("clients get the certificate for the name that they request");
    for (at, (certificate, key)) in home.certificates(&settings.tls).into_iter().enumerate() {
        if certificate.exists() || wanted {
            found.push(self::certificate(&certificate, &key));
        }
        let (shown, names) = (certificate.display(), tls::names(&certificate));
        if at > 0 && certificate.exists() && names.is_empty() {
            let what = format!("{shown}: it has no host name (subjectAltName), so no client gets it");
            found.push(finding("warning", what, hint));
        }
        for name in names {
            match named.iter().find(|(before, _)| before.eq_ignore_ascii_case(&name)) {
                // The same name twice in one certificate.
                Some((_, (first, _))) if *first == at => {}
                Some((_, (_, first))) => {
                    let what = format!(
                        "{shown}: {} also matches {name} and comes first, so clients get that one",
                        first.display()
                    );
                    found.push(finding("warning", what, Some("list each certificate once")));
                }
                None => named.push((name, (at, certificate.clone()))),
            }
        }
    }
    if named.is_empty() {
        return;
    }
    for listener in config::of_host(settings).iter().chain(of_services) {
        let covered = |asked: &str| {
            named.iter().any(|(name, _)| name.eq_ignore_ascii_case(asked) || name_fits(name, asked).is_some())
        };
        for name in listener.marks.names.iter().filter(|name| !covered(name)) {
            let what = format!("{}: names = [{name:?}], but no certificate is for this name", listener.place());
            found.push(finding("warning", what, Some("clients that check names refuse the host: see [[tls.others]]")));
        }
    }
}

/// Reports a Unix socket through which any user of this machine is trusted as a proxy.
fn believed(listener: &ListenerSettings) -> Option<Finding> {
    let Address::Unix(path) = &listener.address else { return None };
    let of_others = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    let reached = listener.mode.is_none_or(|mode| mode & 0o002 != 0) && path.ancestors().skip(1).all(of_others);
    (listener.unix_proxy && reached).then(|| {
        let what = format!(
            "{}: every user of this machine can connect to {} and is trusted as a proxy",
            listener.place(),
            path.display()
        );
        finding(
            "warning",
            what,
            Some("mode = \"0660\", in a folder whose group is the proxy's; or a folder for both alone"),
        )
    })
}
