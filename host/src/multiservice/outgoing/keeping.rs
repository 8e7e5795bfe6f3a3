//! What a generation saves and requests: the store's answers, and the results of commits.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use plugin_api::abi::frame::{self, ToHost, ToLibrary, next_to_host};
use plugin_api::abi::limits::ServiceLimits;

use super::commits::Effect;
use super::{Lifecycle, Outgoing, STORE_RETRY};
use crate::multiservice::router::{Delivery, Weight};
use crate::store::{Change, Entries, Range, Saved, StoreError, Write};

impl Outgoing {
    pub(super) fn load(&self, request: u64, perspective: &str) {
        let me = Weak::clone(&self.me);
        let done = Box::new(move |saved: Result<Option<Saved>, StoreError>| {
            let Some(me) = me.upgrade() else { return };
            match saved {
                Ok(saved) => {
                    let version = saved.as_ref().map_or(0, |saved| saved.version);
                    let state = saved.as_ref().map(|saved| saved.state.as_slice());
                    me.send(&ToLibrary::Loaded { request, state, version });
                }
                Err(error) => me.send(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.store.state(self.name(), perspective, done);
    }

    pub(super) fn data(&self, request: u64, range: &Range) {
        let me = Weak::clone(&self.me);
        let done = Box::new(move |found: Result<Entries, StoreError>| {
            let Some(me) = me.upgrade() else { return };
            match found {
                Ok(Entries { entries: found, more, version }) => {
                    let mut entries = Vec::new();
                    for (key, value) in &found {
                        frame::put_entry(&mut entries, key, Some(value));
                    }
                    me.send(&ToLibrary::Entries { request, entries: &entries, more, version });
                }
                Err(error) => me.send(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.store.data(self.name(), range, done);
    }

    /// The generation is frozen. Data that it has given to the store must be written first.
    pub(super) fn frozen(&self, step: Lifecycle) {
        let mut writing = self.writing.lock();
        if writing.pending == 0 {
            drop(writing);
            self.reached(step);
        } else {
            writing.frozen = Some(step);
        }
    }

    fn written(&self) {
        let mut writing = self.writing.lock();
        writing.pending -= 1;
        if writing.pending == 0
            && let Some(step) = writing.frozen.take()
        {
            drop(writing);
            self.reached(step);
        }
    }

    pub(super) fn write(&self, request: u64, base: u64, entries: &[u8]) {
        if let Err(message) = within(&self.limits.now().services, entries) {
            return self.send(&ToLibrary::NotLoaded { request, message: &message });
        }
        let entries = frame::entries(entries).map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        let me = Weak::clone(&self.me);
        let done = Box::new(move |written: Result<(), StoreError>| {
            let Some(me) = me.upgrade() else { return };
            me.written();
            match written {
                Ok(()) => me.send(&ToLibrary::Committed { request }),
                Err(error) => me.send(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.writing.lock().pending += 1;
        self.store.commit(vec![Write::Data { service: self.name().to_owned(), base, entries }], done);
    }

    /// A commit has completed.
    fn committed(&self, result: Result<(), StoreError>) {
        if let Err(error) = &result {
            match error {
                // The operator wants it so.
                StoreError::Elsewhere(_) => tracing::info!(service = self.name(), "changes are undone: {error}"),
                _ => tracing::error!(service = self.name(), %error, "changes could not be saved; they are undone"),
            }
            *self.failed.lock() = match error {
                StoreError::Elsewhere(why) => format!("the change could not be saved and was undone: {why}"),
                _ => "the change could not be saved and was undone".to_owned(),
            };
        }
        // With the queue locked: later frames go out behind it.
        let mut queue = self.queue.lock();
        let effects = queue.committed(self.phase(), result.is_ok());
        let commit = self.perform(effects);
        self.unwritten.store(queue.unwritten(), Ordering::Relaxed);
        drop(queue);
        self.commit(commit);
    }

    /// Performs the queue's effects while it is locked, so that nothing overtakes them. Returns what to commit after it is
    /// unlocked, because the store may be done before it returns.
    pub(super) fn perform(&self, effects: Vec<Effect>) -> Option<Vec<Change>> {
        let mut delivery = Delivery::new(&self.router);
        let mut commit = None;
        for effect in effects {
            match effect {
                Effect::Release(frames) => self.release(&frames, &mut delivery),
                Effect::Undo(frames) => each(&frames, |frame, raw| self.undo(frame, raw, &mut delivery)),
                Effect::Refuse(frames) => each(&frames, |frame, _| self.refuse(frame)),
                Effect::Revert(perspective) => self.revert(perspective, 0),
                Effect::Loaded(request, state, version) => {
                    self.send(&ToLibrary::Loaded { request, state: Some(&state), version });
                }
                Effect::Commit(changes) => commit = Some(changes),
            }
        }
        commit
    }

    pub(super) fn commit(&self, changes: Option<Vec<Change>>) {
        let Some(changes) = changes else { return };
        let me = Weak::clone(&self.me);
        let done = move |result| {
            if let Some(me) = me.upgrade() {
                me.committed(result);
            }
        };
        let most = self.limits.now().services.state;
        if let Some(large) = changes.iter().find(|change| change.state.len() > most) {
            let why = format!("the state of {} has {} bytes", large.perspective, large.state.len());
            return done(Err(StoreError::Failed(why)));
        }
        if let Some(why) = changes.iter().find_map(|change| self.elsewhere.why_not_saved(&change.perspective)) {
            return done(Err(StoreError::Elsewhere(why)));
        }
        self.store.commit(changes.into_iter().map(Write::State).collect(), Box::new(done));
    }

    pub(super) fn release(&self, frames: &[u8], delivery: &mut Delivery<'_>) {
        each(frames, |frame, raw| self.out(frame, raw, delivery));
    }

    /// Handles a frame of a batch that was not committed: answers become errors, and calls and updates are not sent.
    fn undo(&self, frame: &ToHost<'_>, raw: &[u8], delivery: &mut Delivery<'_>) {
        match *frame {
            ToHost::Answer { call, objects, .. } => {
                self.give_back(call, objects);
                let mut failed = Vec::new();
                let (class, message) = ("RuntimeError", &*self.failed.lock());
                ToHost::Failed { call, class, message, fault: false, detail: &[] }.write(&mut failed);
                delivery.deliver(call, self.tag(), &failed, Weight::Must);
            }
            ToHost::Call { call, handle, answer, objects, .. } => {
                self.give_back(handle, objects);
                if answer {
                    let (class, message) = ("RuntimeError", "a change before it could not be saved");
                    self.send(&ToLibrary::Failed { call, class, message, detail: &[] });
                }
            }
            ToHost::Sync { request } => {
                let message = "a change before it could not be saved";
                self.send(&ToLibrary::NotLoaded { request, message });
            }
            // The change that it tells of did not happen.
            ToHost::Update { attachment, objects, .. } => self.give_back(attachment, objects),
            ToHost::Frozen { .. } => {
                let why = "the serving code could not save its changes and reverts to the saved state";
                self.reached(Lifecycle::Refused(why.to_owned()));
            }
            _ => self.out(frame, raw, delivery),
        }
    }

    /// Sends the service a perspective's committed state again; later, if the store cannot read it now.
    fn revert(&self, perspective: String, tries: u32) {
        let me = Weak::clone(&self.me);
        let of = perspective.clone();
        let done = Box::new(move |state: Result<Option<Saved>, StoreError>| {
            let Some(me) = me.upgrade().filter(|me| !me.is_over()) else { return };
            match state {
                Ok(saved) => {
                    let version = saved.as_ref().map_or(0, |saved| saved.version);
                    let state = saved.as_ref().map(|saved| saved.state.as_slice());
                    me.send(&ToLibrary::Revert { perspective: &of, state, version });
                }
                Err(error) => {
                    if tries == 0 {
                        tracing::error!(service = me.name(), %error, "the service waits for the store");
                    }
                    // Until then, nothing that the service says is sent: it cannot know its state.
                    let waiting = std::thread::Builder::new().name("store-again".to_owned()).spawn(move || {
                        std::thread::sleep(STORE_RETRY);
                        me.revert(of, tries + 1);
                    });
                    if let Err(error) = waiting {
                        tracing::error!(%error, "a service cannot revert to its last commit; restart the host");
                    }
                }
            }
        });
        self.store.state(self.name(), &perspective, done);
    }
}

fn each(mut frames: &[u8], mut do_it: impl FnMut(&ToHost<'_>, &[u8])) {
    while let Some((frame, raw)) = next_to_host(&mut frames) {
        do_it(&frame, raw);
    }
}

/// Whether a change of a service's data is within its limits. The library checks this, too, but untrusted code may not.
fn within(limits: &ServiceLimits, entries: &[u8]) -> Result<(), String> {
    let mut all = 0_usize;
    for (key, value) in frame::entries(entries) {
        let size = value.map_or(0, <[u8]>::len);
        all = all.saturating_add(key.len()).saturating_add(size);
        // What is there can be removed, whatever the limit has become.
        let key = if value.is_some() { key.len() } else { 0 };
        let over = [("key", key, limits.key), ("value", size, limits.value), ("change", all, limits.change)];
        if let Some((what, size, most)) = over.into_iter().find(|(_, size, most)| size > most) {
            return Err(format!("a {what} of a service's data has {most} bytes at most; this one has {size} or more"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_data_is_held_to_its_limits() {
        let limits = ServiceLimits { key: 10, value: 100, change: 250, ..ServiceLimits::default() };
        let change = |entries: &[(usize, Option<usize>)]| {
            let mut bytes = Vec::new();
            for (key, value) in entries {
                frame::put_entry(&mut bytes, &vec![b'k'; *key], value.map(|size| vec![0; size]).as_deref());
            }
            within(&limits, &bytes).map_err(|why| why.split(' ').nth(1).unwrap_or_default().to_owned())
        };
        for (entries, verdict) in [
            (&[(10, Some(100)), (10, Some(100))][..], Ok(())),
            (&[(11, Some(1))], Err("key")),
            (&[(11, None)], Ok(())),
            (&[(1, Some(101))], Err("value")),
            (&[(10, Some(100)), (10, Some(100)), (10, Some(20))], Ok(())),
            (&[(10, Some(100)), (10, Some(100)), (10, Some(21))], Err("change")),
            (&[], Ok(())),
        ] {
            assert_eq!(change(entries), verdict.map_err(str::to_owned), "{entries:?}");
        }
    }
}
