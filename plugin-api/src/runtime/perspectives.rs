//! Perspectives: loaded once, kept while clients are attached, saved after the last has gone.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::calls::poll_once;
use super::{Attaching, Leaving, Runtime, contained, dead};
use crate::abi::frame::{ToHost, ToLibrary};
use crate::call::Attachment;
use crate::fault::{Fault, Result};
use crate::handle::{AnyHandle, Handle, Saver};
use crate::service::{Save, Service};

/// If a state cannot be reloaded: the delay before the next attempt, and the number of attempts that requests for it wait for.
const RELOAD_AGAIN: Duration = Duration::from_secs(1);
const RELOADS: u32 = 3;

fn being_reloaded(name: &str) -> String {
    format!("{name} is being reloaded; call again")
}

impl<S: Service> Runtime<S> {
    pub(crate) fn attached(&self) -> Vec<(String, Handle<S::Perspective>)> {
        self.perspectives.borrow().attached()
    }

    /// Returns the perspective of this name. Concurrent requests load it only once.
    pub(crate) async fn perspective(&self, name: &str) -> Result<Handle<S::Perspective>> {
        loop {
            // A perspective in memory may be reloading at this moment.
            if let Some(loaded) = self.others_load(name) {
                let _ = loaded.await;
                continue;
            }
            if let Some(cached) = self.perspectives.borrow().get(name) {
                return Ok(cached);
            }
            let turn = self.load_turn(name);
            let made = self.make(name).await;
            if let Ok(perspective) = &made {
                self.perspectives.borrow_mut().insert(name, perspective);
            }
            drop(turn);
            return made;
        }
    }

    /// If this perspective's state is being loaded, returns a receiver that completes when the load has ended.
    fn others_load(&self, name: &str) -> Option<oneshot::Receiver<()>> {
        let mut loading = self.loading.borrow_mut();
        let (done, loaded) = oneshot::channel();
        loading.get_mut(name)?.push(done);
        Some(loaded)
    }

    /// Makes requests for this perspective wait until the returned guard is dropped.
    fn load_turn(&self, name: &str) -> LoadTurn<S> {
        self.loading.borrow_mut().insert(name.to_owned(), Vec::new());
        LoadTurn { runtime: self.me(), name: name.to_owned() }
    }

    /// Yields this perspective to another version of the service: saves what has changed, and refuses changes from then on.
    pub(super) fn yields(&self, name: &str, why: &str) {
        let cached = self.perspectives.borrow().get(name);
        if let Some(cached) = cached
            && let Err(fault) = contained("save", || cached.flush())
        {
            tracing::error!(perspective = name, %fault, "the perspective could not be saved");
        }
        // With `Save::Never`, each version has a state of its own.
        if S::SAVE != Save::Never {
            self.core.yields(name, why);
        }
        self.core.push(&ToHost::Yielded { perspective: name });
    }

    /// Regains a perspective whose saved state another version has changed: reloads what is in memory. Until then, requests for
    /// it wait, and those who have it cannot change it.
    pub(super) fn regains(&self, name: &str) {
        let others = self.others_load(name);
        let cached = self.perspectives.borrow().get(name);
        if S::SAVE == Save::Never || others.is_none() && cached.is_none() {
            return self.core.regains(name);
        }
        // If this generation was not asked to yield the perspective, it may have unsaved changes.
        if let Some(Err(fault)) = cached.map(|cached| contained("save", || cached.flush())) {
            tracing::error!(perspective = name, %fault, "the perspective could not be saved");
        }
        let turn = others.is_none().then(|| self.load_turn(name));
        self.core.yields(name, &being_reloaded(name));
        let (me, name) = (self.me(), name.to_owned());
        tokio::task::spawn_local(async move { me.reload(&name, others, turn).await });
    }

    /// Reloads a perspective's state, in its turn. Retries until that succeeds.
    async fn reload(&self, name: &str, others: Option<oneshot::Receiver<()>>, turn: Option<LoadTurn<S>>) {
        let mut others = others;
        while let Some(loaded) = others {
            let _ = loaded.await;
            others = self.others_load(name);
        }
        let mut turn = Some(turn.unwrap_or_else(|| self.load_turn(name)));
        // An earlier reload may have ended just now, and allowed changes again.
        self.core.yields(name, &being_reloaded(name));
        for tries in 1.. {
            let Some(cached) = self.perspectives.borrow().get(name) else {
                if self.core.is_elsewhere_for(name, &being_reloaded(name)) {
                    self.core.regains(name);
                }
                return;
            };
            let fault = match self.core.load(name).await {
                // Another trial has begun since, and has the perspective. Only the state that is loaded after its end counts.
                Ok(_) if !self.core.is_elsewhere_for(name, &being_reloaded(name)) => return,
                Ok((state, version)) => match cached.revert(state.as_deref(), version) {
                    Ok(()) => return self.core.regains(name),
                    Err(fault) => {
                        self.cannot_read(name, &fault);
                        return self.core.push(&ToHost::Regained { perspective: name });
                    }
                },
                Err(fault) => fault,
            };
            tracing::warn!(perspective = name, %fault, "its state cannot be reloaded yet");
            if self.core.retired.get() || self.stopping.get() {
                return;
            }
            if tries == RELOADS {
                // Those who wait get the previous state, and cannot change it.
                turn = None;
            }
            tokio::time::sleep(RELOAD_AGAIN).await;
        }
        drop(turn);
    }

    async fn make(&self, name: &str) -> Result<Handle<S::Perspective>> {
        let (state, version) = match S::SAVE {
            Save::Never => (None, 0),
            _ => self.core.load(name).await?,
        };
        let service = self.service()?;
        let fresh = {
            let (service, name) = (service.clone(), name.to_owned());
            move || service.read(|service| S::perspective(service, &name))?
        };
        let value = match &state {
            Some(state) => {
                contained("reading the saved state", || S::load_perspective(state)).inspect_err(|fault| {
                    let message = fault.message();
                    self.core.push(&ToHost::Unreadable { perspective: name, message });
                })?
            }
            None => contained("perspective", &fresh)?,
        };
        // A new perspective was made from the service's present state.
        let beside = Cell::new(S::SHARED && state.is_none());
        let saver = Saver {
            core: Rc::clone(&self.core),
            name: name.into(),
            policy: S::SAVE,
            save: S::save_perspective,
            load: S::load_perspective,
            fresh: Box::new(fresh),
            first: RefCell::default(),
            last: RefCell::new(state),
            version: Cell::new(version),
            beside,
        };
        Ok(Handle::saved(value, saver))
    }

    pub(super) fn attach(&self, attachment: Attachment) {
        let id = attachment.id();
        self.core.connected(id);
        self.attachments.borrow_mut().insert(id, Attaching::Pending { leaving: Leaving::Stays, calls: Vec::new() });
        let me = self.me();
        let mut attaching: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let attached = me.attach_now(&attachment).await;
            if me.core.retired.get() {
                // The new generation answers.
                return;
            }
            me.core.copies.asked(id);
            let before = me.attachments.borrow_mut().remove(&id);
            let Some(Attaching::Pending { leaving, calls }) = before else { return };
            match attached {
                Ok((perspective, name)) => {
                    me.core.has_avatar(id, AnyHandle::from(perspective.clone()).0);
                    let now = Attaching::Attached { perspective, attachment, name };
                    me.attachments.borrow_mut().insert(id, now);
                    me.core.push(&ToHost::Attached { attachment: id });
                    let context = me.context();
                    for (bytes, received) in calls {
                        me.serve_kept(&bytes, received, &context);
                    }
                    if leaving != Leaving::Stays {
                        me.detach(id, leaving);
                    }
                }
                Err(fault) => {
                    me.core.disconnected(id);
                    for (bytes, _) in calls {
                        if let Some(ToLibrary::Call { call, answer: true, .. }) = ToLibrary::read(&mut bytes.as_slice())
                        {
                            me.core.fail(call, &fault);
                        }
                    }
                    me.core.fail(id, &fault);
                }
            }
        });
        if poll_once(&mut attaching).is_pending() {
            tokio::task::spawn_local(attaching);
        }
    }

    async fn attach_now(&self, attachment: &Attachment) -> Result<(Handle<S::Perspective>, Option<String>)> {
        let asked = self.perspective(attachment.perspective()).await?;
        if self.core.retired.get() {
            return Err(Fault::reloaded());
        }
        let context = self.context();
        let attached = contained("attached", || S::attached(&context, asked, attachment))?;
        // `attached` may have returned another perspective: one of another name, or one without a name.
        let name = self.perspectives.borrow_mut().attach(&attached);
        Ok((attached, name))
    }

    pub(super) fn detach(&self, id: u64, leaving: Leaving) {
        let entry = {
            let mut attachments = self.attachments.borrow_mut();
            match attachments.get_mut(&id) {
                Some(Attaching::Pending { leaving: meanwhile, .. }) => {
                    *meanwhile = leaving;
                    return;
                }
                Some(Attaching::Attached { attachment, .. }) if leaving == Leaving::LetsGo => {
                    self.core.copies.let_go(id);
                    let stays = Attaching::LetGo(attachment.clone());
                    attachments.insert(id, stays)
                }
                Some(Attaching::LetGo(_)) if leaving == Leaving::LetsGo => return,
                Some(_) => attachments.remove(&id),
                None => return,
            }
        };
        self.core.forget_avatar(id);
        if leaving == Leaving::Ends {
            self.core.disconnected(id);
        }
        let Some(Attaching::Attached { perspective, attachment, name }) = entry else {
            return;
        };
        let context = self.context();
        let _ = contained("detached", || {
            S::detached(&context, perspective.clone(), &attachment);
            Ok(())
        });
        let Some(name) = name else { return };
        let last = self.perspectives.borrow_mut().detach(&name);
        if last {
            if let Err(fault) = contained("save", || perspective.flush()) {
                tracing::error!(perspective = name, %fault, "the perspective could not be saved");
            }
            let kept = self.perspectives.borrow_mut().release(&name);
            drop((kept, perspective));
            // If somebody holds its handle, it stays the perspective of its name.
            self.perspectives.borrow_mut().sweep(&name);
        }
    }

    /// The access of an attachment was revoked: its calls that have not begun are refused from now on.
    pub(super) fn revoke(&self, id: u64) {
        self.revoked.borrow_mut().insert(id);
        let waiting = match self.attachments.borrow_mut().get_mut(&id) {
            Some(Attaching::Pending { calls, .. }) => std::mem::take(calls),
            _ => Vec::new(),
        };
        for (bytes, received) in waiting {
            if let Some(ToLibrary::Call { call, answer: true, .. }) = ToLibrary::read(&mut bytes.as_slice()) {
                self.core.fail(call, &dead());
            }
            drop(received);
        }
        self.detach(id, Leaving::Ends);
    }

    pub(super) fn revert(&self, perspective: &str, state: Option<&[u8]>, version: u64) {
        if perspective.is_empty() {
            if let Some(Err(fault)) = self.service().ok().map(|service| service.revert(state, version)) {
                self.cannot_read(perspective, &fault);
            }
            return;
        }
        let cached = self.perspectives.borrow().get(perspective);
        if let Some(Err(fault)) = cached.map(|cached| cached.revert(state, version)) {
            self.cannot_read(perspective, &fault);
        }
    }

    /// Reports that this code cannot read a perspective's saved state. It has an older state in memory, which must not overwrite
    /// the saved one.
    fn cannot_read(&self, perspective: &str, fault: &Fault) {
        let name = if perspective.is_empty() { "the service" } else { perspective };
        tracing::error!(perspective, %fault, "its saved state could not be reloaded");
        self.core.push(&ToHost::Unreadable { perspective, message: fault.message() });
        self.core.yields(
            perspective,
            &format!("the saved state of {name} cannot be read by this version, which holds an older one"),
        );
    }
}

/// When dropped, wakes all who wait for the same perspective, regardless of how the load ended.
struct LoadTurn<S: Service> {
    runtime: Rc<Runtime<S>>,
    name: String,
}

impl<S: Service> Drop for LoadTurn<S> {
    fn drop(&mut self) {
        // Dropping the senders wakes the receivers.
        self.runtime.loading.borrow_mut().remove(&self.name);
    }
}
