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

/// After how long a state that could not be loaded again is asked for once more; and how often whoever wants it waits for that.
const RELOAD_AGAIN: Duration = Duration::from_secs(1);
const RELOADS: u32 = 3;

fn being_reloaded(name: &str) -> String {
    format!("{name} is being reloaded; call again")
}

impl<S: Service> Runtime<S> {
    pub(crate) fn attached(&self) -> Vec<(String, Handle<S::Perspective>)> {
        self.perspectives.borrow().attached()
    }

    /// The perspective of this name, which is loaded once, however many ask at once.
    pub(crate) async fn perspective(&self, name: &str) -> Result<Handle<S::Perspective>> {
        loop {
            // One that is in memory may be read again just now.
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

    /// If somebody reads this perspective's state just now: told when they have.
    fn others_load(&self, name: &str) -> Option<oneshot::Receiver<()>> {
        let mut loading = self.loading.borrow_mut();
        let (done, loaded) = oneshot::channel();
        loading.get_mut(name)?.push(done);
        Some(loaded)
    }

    /// From now on, until this is dropped, whoever wants this perspective waits.
    fn load_turn(&self, name: &str) -> LoadTurn<S> {
        self.loading.borrow_mut().insert(name.to_owned(), Vec::new());
        LoadTurn { runtime: self.me(), name: name.to_owned() }
    }

    /// Another version of the service has this perspective from now on: what has changed in it is saved, and nothing changes it
    /// any more.
    pub(super) fn yields(&self, name: &str, why: &str) {
        let cached = self.perspectives.borrow().get(name);
        if let Some(cached) = cached
            && let Err(fault) = contained("save", || cached.flush())
        {
            tracing::error!(perspective = name, %fault, "the perspective could not be saved");
        }
        // What is never saved is each version's own.
        if S::SAVE != Save::Never {
            self.core.yields(name, why);
        }
        self.core.push(&ToHost::Yielded { perspective: name });
    }

    /// What is saved of this perspective was changed by another version: what is in memory of it is read again. Until then whoever
    /// wants it waits, and whoever has it cannot change it.
    pub(super) fn regains(&self, name: &str) {
        let others = self.others_load(name);
        let cached = self.perspectives.borrow().get(name);
        if S::SAVE == Save::Never || others.is_none() && cached.is_none() {
            return self.core.regains(name);
        }
        // What nobody has asked this code to yield may have changed since it was saved.
        if let Some(Err(fault)) = cached.map(|cached| contained("save", || cached.flush())) {
            tracing::error!(perspective = name, %fault, "the perspective could not be saved");
        }
        let turn = others.is_none().then(|| self.load_turn(name));
        self.core.yields(name, &being_reloaded(name));
        let (me, name) = (self.me(), name.to_owned());
        tokio::task::spawn_local(async move { me.reload(&name, others, turn).await });
    }

    /// Reads a perspective's state again, in its turn, until that succeeds.
    async fn reload(&self, name: &str, others: Option<oneshot::Receiver<()>>, turn: Option<LoadTurn<S>>) {
        let mut others = others;
        while let Some(loaded) = others {
            let _ = loaded.await;
            others = self.others_load(name);
        }
        let mut turn = Some(turn.unwrap_or_else(|| self.load_turn(name)));
        // Another reload that came before may have ended just now.
        self.core.yields(name, &being_reloaded(name));
        for tries in 1.. {
            let Some(cached) = self.perspectives.borrow().get(name) else {
                if self.core.is_elsewhere_for(name, &being_reloaded(name)) {
                    self.core.regains(name);
                }
                return;
            };
            let fault = match self.core.load(name).await {
                // Another trial has begun since, and has it: what is loaded then counts at the end of that.
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
                // Whoever waits for it has what there was until now, and cannot change it.
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
        // One that is new was made from what the service is now.
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
                // It is the new code's to answer.
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
                        if let Some(frame) = ToLibrary::read(&mut bytes.as_slice()) {
                            me.serve_one(frame, &context);
                        }
                        drop(received);
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
        // Another perspective may have been answered: one of another name, or one that has none.
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
            // Somebody may hold its handle: then it stays the one of its name.
            self.perspectives.borrow_mut().sweep(&name);
        }
    }

    /// What an attachment came by was taken away: calls by it that have not begun are refused from now on.
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

    /// What is saved of this perspective cannot be read by this code, which has an older state in memory: that must not be saved over it.
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

/// Lets those go on who wait for the same perspective, however its loading ended.
struct LoadTurn<S: Service> {
    runtime: Rc<Runtime<S>>,
    name: String,
}

impl<S: Service> Drop for LoadTurn<S> {
    fn drop(&mut self) {
        // Their ends of the channels are told by the drop.
        self.runtime.loading.borrow_mut().remove(&self.name);
    }
}
