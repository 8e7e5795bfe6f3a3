//! A room to talk in, with two doors: the model for a service that calls its clients, and for one that has a door of its own.
//!
//! Each client of Perspective Broker passes an object when it attaches (its *mind*), with the methods `heard(who, text)`,
//! `told(who, text)`, `came(who)` and `went(who)`. For clients of IRC (`irc`), the room is `#chat`. A person who is present by
//! several doors, or several times, counts as one. Nothing is saved: the service knows who is present for as long as they are.
//! Code that replaces this one takes over the connections of IRC.

mod irc;
mod message;
mod session;

use std::collections::BTreeSet;

use plugin_api::prelude::*;
use plugin_api::{Fault, Transport};

use self::irc::{Irc, Window};
use self::message::nick;
use self::session::ROOM;

plugin_api::export!(Chat);

/// Is notified of what happens in the room. Optional.
#[mind]
trait Ear {
    /// Somebody has said something to everybody.
    fn heard(&self, who: &str, text: &str);
    /// Somebody has said something to this guest only.
    fn told(&self, who: &str, text: &str);
    /// Somebody has come.
    fn came(&self, who: &str);
    /// Somebody has gone.
    fn went(&self, who: &str);
    /// Somebody asks only this guest, and receives the answer.
    #[method("heard")]
    async fn ask(&self, who: &str, text: &str) -> Result<Value>;
}

/// Nobody of this name is in the room.
#[derive(Serialize, Fault)]
#[fault(class = "chat.NotPresent", message = "{who} is not here")]
struct NotPresent {
    /// The name.
    who: String,
}

/// Who is present.
#[derive(Default)]
struct Chat {
    /// By Perspective Broker.
    present: Vec<Attachment>,
    /// By IRC.
    windows: Vec<Window>,
}

/// A chat room: for clients of IRC, and for clients that pass an object to be notified.
#[service("chat", save = "never", mind = Ear)]
impl Service for Chat {
    type Perspective = Guest;

    async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
        context.serve::<Irc>("irc")
    }

    fn attached(context: &Context<Self>, guest: Handle<Guest>, attachment: &Attachment) -> Result<Handle<Guest>> {
        context.service()?.write(|chat| {
            // A client that was here before a reload has not come just now.
            if attachment.reason() == Reason::Login {
                chat.comes(attachment.perspective(), None);
            }
            chat.present.push(attachment.clone());
        })?;
        Ok(guest)
    }

    fn detached(context: &Context<Self>, _: Handle<Guest>, attachment: &Attachment) {
        let Ok(service) = context.service() else { return };
        // No caller is writing to the service: the host calls this directly.
        let _ = service.write(|chat| {
            chat.present.retain(|other| other.id() != attachment.id());
            chat.goes(attachment.perspective(), &format!("PART {ROOM} :gone"));
        });
    }
}

impl Chat {
    /// Notifies everybody present who gave an object. Returns how many those are.
    fn tell(&self, tell: impl Fn(&Ear) -> Result<()>) -> usize {
        self.present.iter().filter_map(ear).filter(|ear| tell(ear).is_ok()).count()
    }

    /// The windows in the room.
    fn joined(&self) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(|window| window.joined)
    }

    /// Who is in the room.
    fn names(&self) -> BTreeSet<String> {
        let present = self.present.iter().map(|guest| guest.perspective().to_owned());
        present.chain(self.joined().map(|window| window.who.clone())).collect()
    }

    /// Whether somebody is in the room.
    fn has(&self, who: &str) -> bool {
        self.joined().any(|window| window.who == who) || self.present.iter().any(|guest| guest.perspective() == who)
    }

    /// Who is here at all.
    fn people(&self) -> BTreeSet<String> {
        let present = self.present.iter().map(|guest| guest.perspective().to_owned());
        present.chain(self.windows.iter().map(|window| window.who.clone())).collect()
    }

    /// Somebody enters the room. If they were not in it before, those who are in it are notified.
    fn comes(&self, who: &str, by: Option<&Transport>) {
        if self.has(who) {
            return;
        }
        self.tell(|ear| ear.came(who));
        for window in self.joined().filter(|window| by.is_none_or(|by| window.transport != *by)) {
            window.moved(who, &format!("JOIN {ROOM}"));
        }
    }

    /// Somebody has left. If they are no longer in the room by any door, those who are in it are notified.
    fn goes(&self, who: &str, word: &str) {
        if self.has(who) {
            return;
        }
        self.tell(|ear| ear.went(who));
        self.joined().for_each(|window| window.moved(who, word));
    }

    /// Somebody says something to the room. Returns how many clients of Perspective Broker are notified.
    fn say(&self, who: &str, text: &str, notice: bool, by: Option<&Transport>) -> usize {
        for window in self.joined().filter(|window| window.echo || by.is_none_or(|by| window.transport != *by)) {
            window.heard(who, ROOM, text, notice);
        }
        self.tell(|ear| ear.heard(who, text))
    }

    /// Somebody says something to one person. Returns false if that person is not here.
    fn whisper(&self, who: &str, to: &str, text: &str, notice: bool) -> bool {
        // By the name itself, or by the nickname if only one person has it.
        let people = self.people();
        let named = |name: &&String| nick(name).eq_ignore_ascii_case(to);
        let whom = match people.get(to) {
            Some(person) => Some(person),
            None => people.iter().find(named).filter(|_| people.iter().filter(named).count() == 1),
        };
        let is = |name: &str| whom.is_some_and(|whom| whom == name);
        let windows: Vec<&Window> = self.windows.iter().filter(|window| is(&window.who)).collect();
        windows.iter().for_each(|window| window.heard(who, &nick(&window.who), text, notice));
        let guests = self.present.iter().filter(|guest| is(guest.perspective()));
        let ears = guests.filter_map(ear).filter(|ear| ear.told(who, text).is_ok()).count();
        ears > 0 || !windows.is_empty()
    }

    /// A window says something. Returns false if the recipient is not here.
    fn spoken(&self, by: &Transport, to: &str, text: &str, notice: bool) -> bool {
        let Some(window) = self.windows.iter().find(|window| window.transport == *by) else { return true };
        if to.eq_ignore_ascii_case(ROOM) {
            self.say(&window.who, text, notice, Some(by));
            return true;
        }
        self.whisper(&window.who, to, text, notice)
    }

    /// A window comes into the room.
    fn join(&mut self, by: &Transport) {
        let Some(at) = self.windows.iter().position(|window| window.transport == *by) else { return };
        let who = self.windows[at].who.clone();
        self.comes(&who, Some(by));
        self.windows[at].joined = true;
        self.windows[at].moved(&who, &format!("JOIN {ROOM}"));
    }

    /// A window leaves the room.
    fn part(&mut self, by: &Transport, why: &str) {
        let Some(at) = self.windows.iter().position(|window| window.transport == *by) else { return };
        let (who, word) = (self.windows[at].who.clone(), format!("PART {ROOM} :{why}"));
        self.windows[at].joined = false;
        self.windows[at].moved(&who, &word);
        self.goes(&who, &word);
    }

    /// A window has gone.
    fn leave(&mut self, by: &Transport, word: &str) {
        let Some(at) = self.windows.iter().position(|window| window.transport == *by) else { return };
        let gone = self.windows.swap_remove(at);
        if gone.joined {
            self.goes(&gone.who, word);
        }
    }
}

/// A guest's mind, if they gave one.
fn ear(guest: &Attachment) -> Option<Ear> {
    guest.mind().cloned().map(Ear::from)
}

/// One guest.
#[derive(Default)]
struct Guest;

/// A guest's view of the room.
#[perspective]
impl Guest {
    /// Says something to everybody, including the caller. Returns how many are notified.
    fn say(&self, context: &Context<Chat>, call: &Call, text: String) -> Result<usize> {
        context.service()?.read(|chat| chat.say(call.attachment().perspective(), &text, false, None))
    }

    /// Says something to one guest. Returns what their client answers.
    #[raises(NotPresent)]
    async fn ask(_me: Handle<Self>, context: Context<Chat>, call: Call, who: String, text: String) -> Result<Value> {
        let ear = context.service()?.read(|chat| {
            let guest = chat.present.iter().find(|guest| guest.perspective() == who);
            guest.and_then(ear)
        })?;
        ear.ok_or(NotPresent { who })?.ask(call.attachment().perspective(), &text).await
    }

    /// Says something to one person, by any of their doors.
    #[raises(NotPresent)]
    fn tell(&self, context: &Context<Chat>, call: &Call, who: String, text: String) -> Result<()> {
        let told = context.service()?.read(|chat| chat.whisper(call.attachment().perspective(), &who, &text, false))?;
        Ok(told.then_some(()).ok_or(NotPresent { who })?)
    }

    /// Who is present, each once.
    fn present(&self, context: &Context<Chat>) -> Result<Vec<String>> {
        context.service()?.read(|chat| chat.names().into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
