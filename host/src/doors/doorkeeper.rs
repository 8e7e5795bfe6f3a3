//! Messages between services' doors and the host.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plugin_api::abi::frame::ToHost;

use super::Doors;
use super::change::OwnChange;
use super::held::{Held, Offer};
use super::listening::Listening;
use super::words::{Asker, Wanted};
use crate::cred::Password;
use crate::multiservice::{Doorkeeper, SlotNo, Speaker};

impl Doorkeeper for Doors {
    fn said(&self, from: Speaker<'_>, frame: &ToHost<'_>) {
        match *frame {
            ToHost::Listen { listener, public } => self.listen(from, listener, public),
            ToHost::Taken { stream, descriptor } => {
                if let Some(held) = self.stream_of(from, stream) {
                    held.taken_by(from.generation, descriptor);
                } else if let Some(lasting) = self.lasting_by(from, stream) {
                    lasting.taken(descriptor);
                }
            }
            ToHost::Closed { stream } => {
                if let Some(held) = self.stream_of(from, stream) {
                    held.close_by(from.generation);
                }
            }
            ToHost::Buffered { stream, bytes } => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                if let Some(held) = self.stream_of(from, stream).filter(|held| !held.buffered(from.generation, bytes)) {
                    let (peer, door) = (&held.peer, held.door());
                    tracing::debug!(peer, door, bytes, "a connection is closed: no memory is left for it");
                    held.cut();
                }
            }
            ToHost::Carry { stream, replacement, state } => {
                if let Some(held) = self.stream_of(from, stream) {
                    self.carry(from, &held, replacement, state);
                }
            }
            ToHost::Authenticate { request, stream, kind, name, secret, source } => {
                let held = self.stream_of(from, stream);
                self.authenticate(Asker::new(from, request), held, (kind, name, secret), source);
            }
            ToHost::Remember { request, login, idle, longest, source, claims } => {
                let source = std::str::from_utf8(source).unwrap_or_default();
                let wanted = Wanted { idle, longest, claims: !claims.is_empty() };
                self.remembers(from, Asker::new(from, request), login, wanted, source);
            }
            ToHost::Claimed { login } => {
                if let Some(lasting) = self.lasting_of(from, login) {
                    lasting.is_claimed();
                }
            }
            ToHost::SignOut { request, login } => match self.lasting_of(from, login) {
                Some(lasting) => self.forget_login(Asker::new(from, request), lasting),
                None => self.refuse(Asker::new(from, request), "the login is not a remembered one, or has ended"),
            },
            ToHost::Account { request, login } => self.account(from, Asker::new(from, request), login),
            ToHost::EndOwn { request, login, remembered, number } => {
                self.end_own(from, Asker::new(from, request), login, (remembered, number));
            }
            ToHost::ChangeOwn { request, login, stream, source, proof, what, label, value } => {
                let change = OwnChange::read(what, label, value);
                let (held, proof) = (self.stream_of(from, stream), std::str::from_utf8(proof).unwrap_or_default());
                self.change_own(from, Asker::new(from, request), login, (held, source), (Password::new(proof), change));
            }
            ToHost::LogOut { login, answers } => self.log_out(from, login, answers),
            ToHost::Attach { request, login } => self.attach(from, Asker::new(from, request), login),
            ToHost::StartTls { request, stream } => {
                let asker = Asker::new(from, request);
                match self.stream_of(from, stream) {
                    Some(held) if held.listening.settings.starttls => held.start_tls(asker),
                    _ => {
                        self.refuse(asker, "the operator has not set starttls = true for this listener");
                    }
                }
            }
            _ => {}
        }
    }

    fn serves(&self, slot: SlotNo, service: &str, generation: u32) {
        let all = self.listeners.iter().filter(|listening| listening.settings.service == service);
        all.for_each(|listening| listening.serves(slot, generation));
        self.offer_held(slot);
        let own = |listening: &&Arc<Listening>| listening.settings.service == service;
        let (taken, others): (Vec<_>, Vec<_>) =
            self.listeners.iter().filter(own).partition(|listening| listening.taken() == Some(slot));
        let wanting = self.wanting.lock();
        let wanting = wanting.iter().filter(|(of, _)| of == service).map(|(_, name)| name.as_str());
        let known: BTreeSet<&str> =
            taken.iter().map(|listening| listening.settings.name.as_str()).chain(wanting).collect();
        for other in others {
            let (name, known) = (&other.settings.name, known.iter().copied().collect::<Vec<_>>().join(", "));
            let known = if known.is_empty() { "none".to_owned() } else { known };
            tracing::warn!(
                "[service.{service}.listen] {name}: the service has no listener of this name (it has: {known}); its clients \
                 wait in vain"
            );
        }
    }

    fn handed_on(&self, slot: SlotNo, replacement: u64) -> Vec<u8> {
        let carried: Vec<Arc<Held>> = {
            let streams = self.streams.lock();
            streams.values().filter(|held| held.is_carried(slot, replacement)).cloned().collect()
        };
        let (mut frames, limits) = (Vec::new(), *self.limits.read());
        for held in carried {
            match held.offer(slot, &limits) {
                Offer::Frame(frame, ..) => frames.extend_from_slice(&frame),
                Offer::Already => {}
                // The client has gone meanwhile: there is nothing to hand on, and the stream is closed here.
                Offer::Gone => held.close(),
            }
        }
        frames
    }

    fn stays(&self, slot: SlotNo) {
        self.streams.lock().values().filter(|held| held.slot() == Some(slot)).for_each(|held| held.stays());
    }

    fn with_others(&self, slot: SlotNo, generation: u32) -> usize {
        self.streams.lock().values().filter(|held| held.is_with_another(slot, generation)).count()
    }

    fn grace(&self, service: &str) -> Option<Duration> {
        let own = self.listeners.iter().filter(|listening| listening.settings.service == service);
        own.filter_map(|listening| listening.settings.grace).max()
    }

    fn ended(&self, slot: SlotNo, service: &str, generation: u32, (serving, stopped): (bool, bool)) {
        let of: Vec<Arc<Held>> = {
            let streams = self.streams.lock();
            streams.values().filter(|held| held.slot() == Some(slot)).cloned().collect()
        };
        for held in of {
            // A generation that was abandoned may continue, and read the frames that it was sent.
            if stopped {
                held.unread(generation, serving);
            }
            // A stream that it has not taken waits for the next generation. A stream that only it had is closed.
            if held.is_left_by(generation, serving) {
                held.close();
            } else if serving && held.returns() {
                held.listening.hold(held.number);
            }
        }
        self.lasting
            .lock()
            .all()
            .filter(|lasting| lasting.is_of(slot))
            .for_each(|lasting| lasting.left_by(generation, stopped));
        if serving {
            self.listeners.iter().for_each(|listening| listening.give_up(slot));
            self.wanting.lock().retain(|(of, _)| of != service);
        }
    }
}
