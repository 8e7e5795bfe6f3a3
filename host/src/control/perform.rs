//! Executes requests.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::failure::ControlFailure;
use super::protocol::{LibraryStatus, Request, Secret};
use super::{audit, known};
use crate::accounts::{AccountError, Accounts, Import};
use crate::config::ConfigFile;
use crate::cred::{Credential, Identity, Key, Password, ProofBy};
use crate::limits;
use crate::login_gate::LoginGate;
use crate::multiservice::MultiService;
use crate::multiservice::ended::Unreleased;
use crate::nearest::meant;
use crate::session::Limits;
use crate::sessions::{SessionStatus, Sessions};
use crate::store::audit::Event;
use crate::store::{BackupFault, Record, StoreError, Write, now, wait};

/// The most identities in one answer.
const PAGE: usize = 10_000;

/// The parts of a running host.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Its services.
    pub services: &'a MultiService,
    /// The state of each file in its folder.
    pub libraries: &'a [LibraryStatus],
    /// The stage before its logins.
    pub gate: &'a LoginGate,
    /// The sessions that are logged in.
    pub sessions: &'a Sessions,
    /// Libraries that could not be unloaded.
    pub held: &'a [Unreleased],
}

/// Executes a request. `host` is the running host, if there is one. `progress` is called with the amount that is done
/// and the total (0 if unknown).
///
/// It takes tens of milliseconds if it hashes a password, and longer for large requests. Do not call it on a thread
/// that serves.
///
/// # Errors
/// If the request fails.
pub fn perform(
    request: &Request,
    accounts: &Accounts,
    host: Option<Running<'_>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Value, ControlFailure> {
    let password = |secret: &Option<Secret>| secret.as_ref().map(|secret| Password::new(&secret.0));
    let key = |name: &str, service: &str, perspective: &Option<String>| {
        Key::new(service, perspective.as_deref().unwrap_or(name))
    };
    Ok(match request {
        Request::IdentityAdd { name, password: secret } => {
            accounts.add(name, password(secret).as_ref())?;
            Value::Null
        }
        Request::IdentityPassword { name, password: secret, label } => {
            match password(secret) {
                Some(password) => accounts.password(name, &password, label.as_deref())?,
                None => accounts.clear_password(name, label.as_deref())?,
            }
            Value::Null
        }
        Request::IdentityDisable { name } => done(accounts.enable(name, false)?),
        Request::IdentityEnable { name } => done(accounts.enable(name, true)?),
        Request::IdentityRemove { name } => done(accounts.remove(name)?),
        Request::IdentityUnlock { name } => {
            let counters = match host {
                Some(host) => host.gate.unlock(name),
                None => forget_failures(accounts, name)?,
            };
            accounts.note(accounts.event("identity.unlocked", name).with("counters", counters));
            let mut done = json!({ "counters": counters });
            // Failures of unknown names are counted as well.
            if let Err(AccountError::Missing { missing, nearest }) = accounts.get(name) {
                warn(&mut done, format!("{missing}{}", meant(name, nearest)));
            }
            done
        }
        Request::IdentityList { after, limit } => {
            accounts.page(after.as_deref(), (*limit).min(PAGE))?.iter().map(|identity| shown(identity, host)).collect()
        }
        Request::IdentityExport { after, limit } => {
            let page = accounts.page(after.as_deref(), (*limit).min(PAGE))?;
            json!(page.iter().map(|identity| exported(identity)).collect::<Vec<_>>())
        }
        Request::IdentityImport { records, passwords, replace, only_passwords, dry_run } => {
            // Hashing each password takes time.
            let hashed = std::cell::Cell::new(0);
            let progress = std::cell::RefCell::new(progress);
            let password = |name: &str| {
                let secret = passwords.get(name)?;
                hashed.set(hashed.get() + 1);
                progress.borrow_mut()(hashed.get(), passwords.len() as u64);
                Some(Password::new(&secret.0))
            };
            let (replace, only_passwords, dry_run) = (*replace, *only_passwords, *dry_run);
            json!(accounts.import(&Import { records, passwords: &password, replace, only_passwords, dry_run })?)
        }
        Request::IdentityShow { name } => shown(&*accounts.get(name)?, host),
        Request::PubkeyAdd { name, line, label, expires } => {
            json!({ "label": accounts.pubkey_add(name, line, label.as_deref(), *expires)? })
        }
        Request::PubkeyRemove { name, label } => done(accounts.credential_remove(name, "pubkey", label)?),
        Request::TokenNew { name, label, expires } => {
            json!({ "token": accounts.token_new(name, label, *expires)?.reveal() })
        }
        Request::TokenRemove { name, label } => done(accounts.credential_remove(name, "token", label)?),
        Request::KeyAdd { name, service, perspective } => {
            let mut done = json!({ "added": accounts.key_add(name, &key(name, service, perspective)?)? });
            let known = known::services(accounts.home(), host.map(|host| host.libraries));
            if !known.contains(service) {
                let meant = meant(service, &known);
                warn(
                    &mut done,
                    format!("there is no service {service:?} yet: the key has no effect until there is one{meant}"),
                );
            }
            done
        }
        Request::KeyRemove { name, service, perspective } => {
            done(accounts.key_remove(name, &key(name, service, perspective)?)?)
        }
        Request::KeyList { name } => shown(&*accounts.get(name)?, host)["keys"].take(),
        Request::SessionList {} => json!(running(host)?.sessions.list()),
        Request::SessionCut { session, identity } => {
            let mut cut = running(host)?.sessions.cut(*session, identity.as_deref());
            for session in &cut {
                let event = Event::new("session.cut").with("session", session.session).with("peer", &*session.peer);
                let event = event.with("by", accounts.by());
                accounts.note(event.with("identities", session.identities.clone()));
            }
            // Otherwise the client could return by a remembered login.
            if let Some(name) = identity.as_ref().filter(|_| session.is_none()) {
                match accounts.forget_logins(name) {
                    // A remembered login that no code is using is not among the visible sessions.
                    Ok(forgotten) if cut.is_empty() => {
                        cut.extend(forgotten.into_iter().map(|label| unused(name, label)))
                    }
                    Ok(_) | Err(AccountError::Missing { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            json!(cut)
        }
        Request::ServiceList {} => json!(running(host)?.libraries),
        Request::ServiceShow { name } => {
            let Running { services, libraries, .. } = running(host)?;
            let service = services.service(name).ok_or_else(|| no_service(name, libraries))?;
            let library = libraries.iter().find(|library| library.service.as_deref() == Some(name));
            json!({ "library": library, "manifest": *service.manifest() })
        }
        Request::ServiceStates { name, after } => states(accounts, name, after.as_deref())?,
        Request::ServiceStop { .. }
        | Request::ServiceStart { .. }
        | Request::ServiceReload { .. }
        | Request::ServiceRollback { .. }
        | Request::ServiceWhy { .. }
        | Request::ServiceTry { .. }
        | Request::ServiceTryEnd { .. }
        | Request::About {}
        | Request::Upgrade { .. }
        | Request::Reload {} => {
            // The host executes these itself, since it has the folder.
            running(host)?;
            Value::Null
        }
        Request::Limits {} => {
            // A running host has already answered this itself, with the current use.
            let settings = ConfigFile::open(&accounts.home().config()).and_then(|file| file.settings());
            let settings = settings.map_err(AccountError::from)?;
            let limits = limits::of_host(Limits::default().refusal, &settings)
                .map_err(|error| ControlFailure { error: error.to_string(), hint: None })?;
            let sections =
                settings.multiservice.iter().map(|(name, one)| (format!("multiservice.{name}"), &one.limits));
            let mut own = BTreeMap::new();
            for (place, section) in sections.chain([("pb".to_owned(), &settings.pb.limits)]) {
                let of_these = limits::of_listeners(limits, &place, section)
                    .map_err(|error| ControlFailure { error, hint: None })?;
                let others = limits::others(&of_these, &limits);
                own.extend((!others.is_empty()).then_some((place, others)));
            }
            json!({ "limits": limits::status(&limits, None), "of_listeners": own, "largest": [] })
        }
        Request::Describe { service } => {
            let Running { services, libraries, .. } = running(host)?;
            json!(*services.service(service).ok_or_else(|| no_service(service, libraries))?.manifest())
        }
        Request::AuditShow { after, limit } => {
            // All events until now are shown. If some cannot be written, the others are shown.
            let _ = wait(|done| accounts.store().settle(done));
            json!(wait(|done| accounts.store().audit(*after, (*limit).min(10_000), done))?)
        }
        Request::AuditVerify { head, files } => audit::verify_all(accounts, (head.as_deref(), files), progress)?,
        Request::AuditExport { file, older } => audit::export(accounts, file, older.as_deref())?,
        Request::AuditPrune { keep, file } => audit::prune(accounts, keep, file.as_deref(), accounts.by())?,
        Request::Backup { file } => {
            accounts
                .store()
                .backup(file, &mut |left, of| progress(u64::from(of.saturating_sub(left)), u64::from(of)))
                .map_err(|error| {
                    let hint = match error {
                        StoreError::Backup { fault: BackupFault::File, .. } => {
                            "name a file that does not exist yet, in a folder that the host can write to"
                        }
                        StoreError::Backup { fault: BackupFault::Disk, .. } => {
                            "make room where the file is; `credhost doctor` checks the store's own disk"
                        }
                        _ => "`credhost doctor` checks the store",
                    };
                    ControlFailure { error: error.to_string(), hint: Some(hint.to_owned()) }
                })?;
            accounts
                .note(Event::new("store.backup").with("file", file.display().to_string()).with("by", accounts.by()));
            Value::Null
        }
        Request::MasterKeyReplace {} => {
            json!({ "identities": accounts.rotate_key(|done| progress(done, 0))? })
        }
        Request::Doctor {} => {
            let mut found = crate::doctor::examine(accounts, &mut |seen| progress(seen, 0));
            found.extend(crate::doctor::sections(accounts.home(), host.map(|host| host.libraries)));
            if let Some(Running { libraries, held, .. }) = host {
                found.extend(crate::doctor::services(libraries, held));
            }
            json!(found)
        }
    })
}

/// A page of a service's saved states, in base64, limited to a few megabytes.
fn states(accounts: &Accounts, service: &str, after: Option<&str>) -> Result<Value, ControlFailure> {
    const PAGE: usize = 100;
    const BYTES: usize = 4 << 20;
    let (mut states, mut size) = (Vec::new(), 0);
    let mut after = after.map(str::to_owned);
    let mut more = true;
    while more && states.len() < PAGE && size < BYTES {
        // One at a time, since several together may have a gigabyte.
        let found = wait(|done| accounts.store().states(service, after.as_deref(), 1, done))?;
        more = !found.is_empty();
        for (name, saved) in found {
            size += saved.state.len();
            states.push(json!([name, data_encoding::BASE64.encode(&saved.state)]));
            after = Some(name);
        }
    }
    Ok(json!({ "states": states, "more": more }))
}

/// Removes the failure counters of a name, if no host is running that would keep counting.
fn forget_failures(accounts: &Accounts, name: &str) -> Result<usize, ControlFailure> {
    let of = LoginGate::digest_of(accounts.secret(), name);
    let kept = wait(|done| accounts.store().failures(done))?;
    let writes: Vec<Write> = kept
        .into_iter()
        .filter(|(counter, _)| counter.name == of)
        .map(|(counter, _)| Write::Failures(counter, 0))
        .collect();
    let count = writes.len();
    wait(|done| accounts.store().commit(writes, done))?;
    Ok(count)
}

fn done((): ()) -> Value {
    Value::Null
}

fn running(host: Option<Running<'_>>) -> Result<Running<'_>, ControlFailure> {
    host.ok_or_else(|| ControlFailure {
        error: "no host runs in this home".to_owned(),
        hint: Some("start one: `credhost run`".to_owned()),
    })
}

fn no_service(name: &str, libraries: &[LibraryStatus]) -> ControlFailure {
    let error = format!("there is no service named {name}");
    ControlFailure { error, hint: Some(known::hint(name, libraries)) }
}

/// Adds a warning to an answer. The command prints it in addition to its usual output.
fn warn(done: &mut Value, what: String) {
    done["warnings"] = json!([what]);
}

/// A remembered login that no session was using when it was removed.
fn unused(identity: &str, label: String) -> SessionStatus {
    let (identities, perspectives) = (vec![identity.to_owned()], Vec::new());
    SessionStatus { session: 0, identities, peer: label, tls: false, since: 0, perspectives }
}

/// An identity for another host, without its remembered logins, which are valid only here.
fn exported(identity: &Identity) -> Record {
    let mut record = Record::from(identity);
    record.credentials.retain(|credential| credential.login.is_none());
    record
}

fn credential(credential: &Credential) -> Value {
    let mut shown = json!({
        "number": credential.id,
        "kind": credential.proof.kind(),
        "label": credential.label,
        "created": credential.created,
        "expires": credential.expires,
        "expired": !credential.valid(now()),
    });
    match &credential.proof {
        ProofBy::Password { verifier, .. } => shown["stock_pb_login"] = verifier.is_some().into(),
        ProofBy::PublicKey(key) => shown["fingerprint"] = key.fingerprint().into(),
        _ => {}
    }
    shown
}

fn shown(identity: &Identity, host: Option<Running<'_>>) -> Value {
    let keys: Vec<Value> = identity
        .keyring
        .keys()
        .map(|key| json!({ "service": key.service.as_str(), "perspective": key.perspective.as_str() }))
        .collect();
    let failures = host.map_or(0, |host| host.gate.failures(identity.name.as_str()));
    let has = |wanted: fn(&ProofBy) -> bool| identity.credentials.iter().any(|credential| wanted(&credential.proof));
    json!({
        "name": identity.name.as_str(),
        "enabled": identity.enabled,
        "locked": failures >= crate::cred::throttle::LOCKED,
        "failures": failures,
        "password": has(|proof| matches!(proof, ProofBy::Password { .. })),
        "stock_pb_login": has(|proof| matches!(proof, ProofBy::Password { verifier: Some(_), .. })),
        "credentials": identity.credentials.iter().map(credential).collect::<Vec<_>>(),
        "keys": keys,
    })
}
