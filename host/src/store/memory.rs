//! A store in memory, for tests and for programs that need no persistence. It outlives the last detach, but not the
//! process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BackupFault, Done, Entries, Kept, Range, Saved, Store, StoreError, Write, audit};
use crate::cred::throttle::Counter;
use crate::cred::{Identity, MasterKey, StoreSecret, TokenDigest};

/// The secret of every store in memory. There is nothing to protect.
const SECRET: [u8; 32] = [0; 32];

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    all: Mutex<All>,
    secret: StoreSecret,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { all: Mutex::default(), secret: StoreSecret::new(SECRET) }
    }
}

#[derive(Debug, Default, Clone)]
struct All {
    states: HashMap<(String, String), Saved>,
    data: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    versions: HashMap<String, u64>,
    identities: BTreeMap<String, (Arc<Identity>, u64)>,
    sources: HashSet<(String, [u8; 16])>,
    failures: HashMap<Counter, u32>,
    audit: Vec<audit::Line>,
    anchor: Option<audit::Head>,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Changes only the text of a line of the trail.
    pub(crate) fn tamper(&self, index: usize, text: &str) {
        text.clone_into(&mut self.all.lock().audit[index].text);
    }
}

impl All {
    /// Checks all writes, then applies all of them.
    fn commit(&mut self, writes: Vec<Write>) -> Result<(), StoreError> {
        for write in &writes {
            let (fits, what) = match write {
                Write::State(change) => {
                    let key = (change.service.clone(), change.perspective.clone());
                    let has = self.states.get(&key).map_or(0, |saved| saved.version);
                    (has == change.base, format!("the state of {}/{}", change.service, change.perspective))
                }
                Write::Data { service, base, .. } => {
                    (self.versions.get(service).copied().unwrap_or(0) == *base, format!("the data of {service}"))
                }
                Write::Identity { identity, base } => {
                    let name = identity.name.as_str();
                    (self.identities.get(name).map_or(0, |kept| kept.1) == *base, format!("the identity {name}"))
                }
                Write::Remove { name, base } => {
                    (self.identities.get(name).map_or(0, |kept| kept.1) == *base, format!("the identity {name}"))
                }
                Write::Prune { through, digest } => {
                    let has = self.audit.iter().any(|line| line.number == *through && line.digest == *digest);
                    (has, format!("line {through} of the audit trail"))
                }
                Write::Source { .. } | Write::Failures(..) | Write::Audit(_) => (true, String::new()),
            };
            if !fits {
                return Err(StoreError::Conflict(what));
            }
        }
        for write in writes {
            match write {
                Write::State(change) => {
                    let saved = Saved { state: change.state, version: change.version };
                    self.states.insert((change.service, change.perspective), saved);
                }
                Write::Data { service, base, entries } => {
                    for (key, value) in entries {
                        let key = (service.clone(), key);
                        match value {
                            Some(value) => drop(self.data.insert(key, value)),
                            None => drop(self.data.remove(&key)),
                        }
                    }
                    self.versions.insert(service, base + 1);
                }
                Write::Identity { identity, base } => {
                    self.identities.insert(identity.name.to_string(), (identity, base + 1));
                }
                Write::Remove { name, .. } => {
                    self.identities.remove(&name);
                    self.sources.retain(|(of, _)| *of != name);
                }
                Write::Source { name, source, .. } => {
                    self.sources.insert((name, source));
                }
                Write::Failures(counter, 0) => {
                    self.failures.remove(&counter);
                }
                Write::Failures(counter, count) => {
                    self.failures.insert(counter, count);
                }
                Write::Audit(event) => {
                    let before = self.last_line();
                    let (number, text) = (before.number + 1, event.text());
                    let digest = audit::digest(&StoreSecret::new(SECRET), &before.digest, number, &text);
                    self.audit.push(audit::Line { number, text, digest });
                }
                Write::Prune { through, .. } => {
                    if let Some(line) = self.audit.iter().find(|line| line.number == through) {
                        self.anchor = Some(audit::Head { number: through, digest: line.digest.clone() });
                        self.audit.retain(|line| line.number > through);
                    }
                }
            }
        }
        Ok(())
    }

    fn last_line(&self) -> audit::Head {
        let last = self.audit.last().map(|line| audit::Head { number: line.number, digest: line.digest.clone() });
        last.or_else(|| self.anchor.clone()).unwrap_or_else(audit::Head::beginning)
    }

    fn entries(&self, service: &str, range: &Range) -> Entries {
        let own = |key: &Vec<u8>| (service.to_owned(), key.clone());
        let within = self
            .data
            .range(own(&range.from)..)
            .take_while(|((of, key), _)| of == service && range.to.as_ref().is_none_or(|to| key < to));
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = within.map(|((_, key), value)| (key.clone(), value.clone())).collect();
        if range.reverse {
            found.reverse();
        }
        let mut entries = Entries { version: self.versions.get(service).copied().unwrap_or(0), ..Entries::default() };
        let mut bytes = 0;
        for (key, value) in found {
            bytes += key.len() + value.len();
            if entries.entries.len() == range.limit || (bytes > range.bytes && !entries.entries.is_empty()) {
                entries.more = true;
                break;
            }
            entries.entries.push((key, value));
        }
        entries
    }
}

fn kept(found: Option<&(Arc<Identity>, u64)>) -> Option<Kept> {
    found.map(|(identity, version)| Kept { identity: Arc::clone(identity), version: *version })
}

impl Store for MemoryStore {
    fn commit(&self, writes: Vec<Write>, done: Done<()>) {
        let result = self.all.lock().commit(writes);
        done(result);
    }

    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>) {
        let state = self.all.lock().states.get(&(service.to_owned(), perspective.to_owned())).cloned();
        done(Ok(state));
    }

    fn data(&self, service: &str, range: &Range, done: Done<Entries>) {
        let entries = self.all.lock().entries(service, range);
        done(Ok(entries));
    }

    fn identity(&self, name: &str, done: Done<Option<Kept>>) {
        let found = kept(self.all.lock().identities.get(name));
        done(Ok(found));
    }

    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>) {
        let has = |kept: &&(Arc<Identity>, u64)| {
            kept.0.credentials.iter().any(|credential| credential.proof.digest() == Some(token))
        };
        let found = kept(self.all.lock().identities.values().find(has));
        done(Ok(found));
    }

    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>) {
        let all = self.all.lock();
        let behind = |name: &str| after.is_none_or(|after| name > after);
        let of = all.states.iter().filter(|((of, name), _)| of == service && behind(name));
        let mut found: Vec<(String, Saved)> = of.map(|((_, name), saved)| (name.clone(), saved.clone())).collect();
        drop(all);
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.truncate(limit);
        done(Ok(found));
    }

    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>) {
        let all = self.all.lock();
        let behind = |name: &str| after.is_none_or(|after| name > after);
        let found = all.identities.iter().filter(|(name, _)| behind(name)).take(limit);
        let found = found.filter_map(|(_, found)| kept(Some(found))).collect();
        drop(all);
        done(Ok(found));
    }

    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>) {
        let known = self.all.lock().sources.contains(&(name.to_owned(), *source));
        done(Ok(known));
    }

    fn failures(&self, done: Done<Vec<(Counter, u32)>>) {
        let all = self.all.lock().failures.iter().map(|(counter, count)| (*counter, *count)).collect();
        done(Ok(all));
    }

    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>) {
        let all: HashSet<[u8; 16]> = self.all.lock().sources.iter().map(|(_, source)| *source).collect();
        done(Ok(all.into_iter().take(limit).collect()));
    }

    fn anchor(&self, done: Done<audit::Head>) {
        let anchor = self.all.lock().anchor.clone();
        done(Ok(anchor.unwrap_or_else(audit::Head::beginning)));
    }

    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>) {
        let lines = self.all.lock().audit.iter().filter(|line| line.number > after).take(limit).cloned().collect();
        done(Ok(lines));
    }

    fn secret(&self) -> &StoreSecret {
        &self.secret
    }

    fn reseal(&self, _: &MasterKey, _: &[u8; 24]) -> Result<(), StoreError> {
        // Nothing is sealed in this store.
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn backup(&self, _: &Path, _: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError> {
        let what = "the store is in memory and has no file".to_owned();
        Err(StoreError::Backup { what, fault: BackupFault::Damage })
    }

    fn head(&self) -> Option<PathBuf> {
        None
    }
}
