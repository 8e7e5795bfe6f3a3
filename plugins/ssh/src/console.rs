//! One channel: a command, lines from a pipe, or an interactive terminal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_api::Login;
use plugin_api::client::{Error, Referenceable, Remote, Value};
use plugin_api::manifest::Manifest;
use plugin_api::shell::{Wrong, json};
use russh::Channel;
use russh::server::Msg;

use crate::called::Called;
use crate::command::{Call, Line, Reach, Request};
use crate::limits::Limits;
use crate::line::{Done, Editor};
use crate::show;
use crate::wire::{Piped, Use, Waiting, Wire};

/// The exit status of a command that was not understood.
const USAGE: u32 = 2;
/// The exit status of a command that was interrupted, as in shells.
const GIVEN_UP: u32 = 130;
/// How long the list of what a client can reach is up to date.
const FRESH: Duration = Duration::from_secs(1);
/// How often to check whether the followed perspective still exists.
const LOOK: Duration = Duration::from_secs(5);

/// Serves a channel to its end.
pub(crate) async fn serve(channel: Channel<Msg>, login: Login, waiting: Arc<Waiting>) {
    let limits = waiting.limits;
    let Some((wire, by, command)) = Wire::begin(channel, waiting).await else { return };
    let mut console = Console::new(wire, login, limits);
    let status = match by {
        Use::Command => console.command(&command).await,
        Use::Pipe => console.pipe().await,
        Use::Terminal(wide) => console.sit_down(wide).await,
    };
    console.wire.end(status).await;
}

/// A perspective: its service, and its name, if one was given.
type Place = (String, Option<String>);

/// A client that has logged in, at one channel.
struct Console {
    wire: Wire,
    login: Login,
    limits: Limits,
    attached: HashMap<Place, Remote>,
    reach: Reach,
    /// When `reach` was found out.
    looked: Option<Instant>,
    called: Called,
    json: bool,
    /// Whether the client has asked for the calls of services.
    follows: bool,
}

/// The outcome of a command.
struct Outcome {
    text: String,
    status: u32,
}

impl Outcome {
    fn said(text: String) -> Self {
        Self { text, status: 0 }
    }

    fn failed(text: &str) -> Self {
        Self { text: show::escaped(&format!("error: {text}\n")), status: 1 }
    }

    fn given_up() -> Self {
        Self { text: "^C\n".to_owned(), status: GIVEN_UP }
    }
}

impl From<Wrong> for Outcome {
    fn from(Wrong { what, hint }: Wrong) -> Self {
        let hint = if hint.is_empty() { hint } else { format!("hint: {hint}\n") };
        Self { text: show::escaped(&format!("error: {what}\n{hint}")), status: USAGE }
    }
}

impl Console {
    fn new(wire: Wire, login: Login, limits: Limits) -> Self {
        let (attached, reach, looked, called) = (HashMap::new(), Reach::default(), None, Called::new(limits));
        Self { wire, login, limits, attached, reach, looked, called, json: false, follows: false }
    }

    /// Runs one command.
    async fn command(&mut self, text: &str) -> u32 {
        match Line::read(text) {
            Ok(line) => self.line(line).await,
            Err(wrong) => self.show(&wrong.into()).await,
        }
    }

    /// Performs the request of a line, and shows the outcome.
    async fn line(&mut self, line: Line) -> u32 {
        let Line { json, follow, request } = line;
        (self.json, self.follows) = (json, follow);
        self.called.set_json(json);
        let followed = match &request {
            Request::Call(call) if follow => Some((call.service.clone(), call.perspective.clone())),
            _ => None,
        };
        let outcome = match request {
            Request::Nothing | Request::Exit => Outcome::said(String::new()),
            Request::Help(words) => self.help(&words).await,
            Request::Call(call) => self.call(call).await,
        };
        let mut status = self.show(&outcome).await;
        if let Some(place) = followed.filter(|_| status == 0) {
            let outcome = self.follow(&place).await;
            status = self.show(&outcome).await;
        }
        self.wire.heard.forget_interrupts();
        status
    }

    /// Shows the calls of services, until the client gives up or the perspective is dead.
    async fn follow(&mut self, place: &Place) -> Outcome {
        let Some(remote) = self.attached.get(place).cloned() else { return Outcome::said(String::new()) };
        let mut dead = std::pin::pin!(dead(remote));
        while !self.wire.heard.gives_up() {
            tokio::select! {
                line = self.called.next() => self.wire.say(&line).await,
                () = self.wire.hear() => {}
                () = &mut dead => {
                    self.attached.remove(place);
                    return Outcome::failed(&format!("{} does not exist any more, or you no longer have a key to it", place.0));
                }
            }
        }
        if self.wire.terminal { Outcome::given_up() } else { Outcome::said(String::new()) }
    }

    /// Runs lines from a pipe, one by one. Returns the status of the last one.
    async fn pipe(&mut self) -> u32 {
        let (mut status, most) = (0, self.limits.piped_line);
        loop {
            while let Some(next) = self.wire.heard.line(most) {
                let outcome = match next {
                    Piped::Line(line) => self.piped(&line, status).await.ok_or(status),
                    Piped::TooLong(discarded) => {
                        let what = format!("a line is too long: {most} bytes at most");
                        let status = self.show(&Wrong { what, hint: String::new() }.into()).await;
                        if discarded { Ok(status) } else { Err(status) }
                    }
                };
                match outcome {
                    Ok(next) => status = next,
                    Err(last) => return last,
                }
                // Other tasks get their turn, whatever this line was.
                tokio::task::yield_now().await;
            }
            if self.wire.heard.was_over() {
                let what = "too many commands wait: further input is not run".to_owned();
                return self.show(&Wrong { what, hint: "send less at once".to_owned() }.into()).await;
            }
            if self.wire.heard.gone || self.wire.heard.ended {
                return status;
            }
            tokio::select! {
                line = self.called.next() => self.wire.tell(&line).await,
                () = self.wire.hear() => {}
            }
        }
    }

    /// Runs a line from a pipe, after one that has ended with `status`. Returns its own status, or `None` if it was the last
    /// line.
    async fn piped(&mut self, line: &[u8], status: u32) -> Option<u32> {
        if self.wire.heard.gone {
            return None;
        }
        let text = String::from_utf8_lossy(line);
        match Line::read(text.trim()) {
            Ok(Line { request: Request::Exit, .. }) => None,
            // The line is empty.
            Ok(Line { request: Request::Nothing, .. }) => Some(status),
            Ok(line) => Some(self.line(line).await),
            Err(wrong) => Some(self.show(&wrong.into()).await),
        }
    }

    /// Serves an interactive terminal.
    async fn sit_down(&mut self, wide: usize) -> u32 {
        let mut editor = Editor::new(&format!("{}> ", show::escaped(self.login.identity())), wide, self.limits.line);
        let mut out = String::new();
        self.look().await;
        loop {
            if let Some(wide) = self.wire.heard.resized.take() {
                editor.resize(wide);
                editor.draw(&mut out);
            }
            if let Some(byte) = self.wire.heard.next() {
                if let Some(done) = editor.typed(byte, &mut out) {
                    self.wire.put(std::mem::take(&mut out)).await;
                    if !self.done(&mut editor, done, &mut out).await {
                        return 0;
                    }
                    // Other tasks get their turn, whatever this line was.
                    tokio::task::yield_now().await;
                }
                continue;
            }
            if self.wire.heard.was_over() {
                let what = "too much was typed ahead: the rest is discarded".to_owned();
                self.show(&Wrong { what, hint: String::new() }.into()).await;
            }
            editor.redraw(&mut out);
            self.wire.put(std::mem::take(&mut out)).await;
            if self.wire.heard.has_more() {
                // It arrived during the write: nothing else will report it.
                continue;
            }
            if self.wire.heard.ended || self.wire.heard.gone {
                return 0;
            }
            tokio::select! {
                line = self.called.next() => {
                    Editor::hide(&mut out);
                    out.push_str(&line.replace('\n', "\r\n"));
                    editor.draw(&mut out);
                }
                () = self.wire.hear() => {}
            }
        }
    }

    /// Performs what was typed. Returns false at the end of the session.
    async fn done(&mut self, editor: &mut Editor, done: Done, out: &mut String) -> bool {
        match done {
            Done::End => return false,
            Done::Interrupt => {}
            Done::TooLong => {
                let what = format!("a line has at most {} characters: nothing of it was run", self.limits.line);
                self.show(&Wrong { what, hint: String::new() }.into()).await;
            }
            Done::Complete(before) => return self.complete(editor, &before, out).await,
            Done::Line(text) => match Line::read(&text) {
                Ok(Line { request: Request::Exit, .. }) => return false,
                Ok(line) => drop(self.line(line).await),
                Err(wrong) => drop(self.show(&wrong.into()).await),
            },
        }
        editor.draw(out);
        true
    }

    async fn complete(&mut self, editor: &mut Editor, before: &str, out: &mut String) -> bool {
        self.look().await;
        let (start, found) = self.reach.complete(before);
        match found.as_slice() {
            [] => out.push('\u{7}'),
            [only] => {
                let blank = if only.ends_with('=') { "" } else { " " };
                editor.complete(start, &format!("{only}{blank}"));
            }
            [first, rest @ ..] => {
                let common = rest.iter().fold(first.as_str(), |common, other| alike(common, other));
                if common.len() > before.len() - start {
                    editor.complete(start, common);
                } else {
                    out.push_str(&format!("\r\n{}\r\n", show::escaped(&found.join("  "))));
                    editor.draw(out);
                }
            }
        }
        true
    }

    async fn help(&mut self, words: &[String]) -> Outcome {
        self.look().await;
        self.reach.help(words).map_or_else(Into::into, |text| Outcome::said(show::escaped(&text)))
    }

    /// Finds out what the client can reach now. If that fails, the previous result stays.
    async fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return;
        }
        let login = self.login.clone();
        if let Some(Some(reach)) = self.wire.hearing(reach(login)).await {
            (self.reach, self.looked) = (reach, Some(Instant::now()));
        }
    }

    /// Calls a method. Meanwhile, input is read, and the calls of services are shown.
    async fn call(&mut self, call: Call) -> Outcome {
        let place = (call.service.clone(), call.perspective.clone());
        let (mind, attached) = (self.called.mind(&call.service), self.attached.get(&place).cloned());
        let calling = call_of(self.login.clone(), call, attached, mind);
        let mut calling = std::pin::pin!(calling);
        let (called, attached) = loop {
            tokio::select! {
                line = self.called.next() => self.show_call(&line).await,
                done = &mut calling => break done,
                () = self.wire.hear() => {}
            }
            if self.wire.heard.gives_up() {
                return Outcome::given_up();
            }
        };
        // The service's calls until then are shown before its answer.
        for _ in 0..self.called.waiting() {
            let line = self.called.next().await;
            self.show_call(&line).await;
        }
        match attached {
            Some(attached) => drop(self.attached.insert(place, attached)),
            None => drop(self.attached.remove(&place)),
        }
        match called {
            Ok(value) if self.json => Outcome::said(show::as_json(&json(value.root()))),
            Ok(value) => Outcome::said(show::answer(&value)),
            Err(Problem::Wrong(wrong)) => wrong.into(),
            Err(Problem::Failed(text)) => Outcome::failed(&text),
            Err(Problem::NoKey(service)) => {
                self.looked = None;
                self.look().await;
                self.reach.unknown(&service).into()
            }
        }
    }

    /// Shows a call of a service: on standard error, unless the client has asked for these calls.
    async fn show_call(&mut self, line: &str) {
        if self.follows { self.wire.say(line).await } else { self.wire.tell(line).await }
    }

    /// Shows the outcome of a command; errors go to standard error. Returns its status.
    async fn show(&mut self, outcome: &Outcome) -> u32 {
        match outcome.status {
            0 => self.wire.say(&outcome.text).await,
            _ => self.wire.tell(&outcome.text).await,
        }
        outcome.status
    }
}

/// What the client can reach now, if that can be found out.
async fn reach(login: Login) -> Option<Reach> {
    let keys = login.keys().await.ok()?;
    let mut reach = Reach::default();
    for (service, _) in &keys {
        if !reach.services.contains_key(service) {
            let manifest = login.describe(service).await.ok();
            reach.services.insert(service.clone(), manifest);
        }
    }
    let several = |service: &str| keys.iter().filter(|(of, _)| of == service).count() > 1;
    reach.perspectives = keys.iter().filter(|(service, _)| several(service)).cloned().collect();
    Some(reach)
}

/// Why a call has failed.
enum Problem {
    Wrong(Wrong),
    Failed(String),
    NoKey(String),
}

/// Calls a method, and attaches first if that is not done yet. Also returns the attachment to keep.
async fn call_of(
    login: Login,
    call: Call,
    attached: Option<Remote>,
    mind: Arc<dyn Referenceable>,
) -> (Result<Value, Problem>, Option<Remote>) {
    let found = async {
        let manifest = login.describe(&call.service).await?;
        let remote = match attached {
            Some(attached) => attached,
            None => login.attach(&call.service, call.perspective.as_deref(), Some(mind)).await?,
        };
        Ok((manifest, remote))
    };
    let (manifest, remote): (Manifest, Remote) = match found.await {
        Ok(found) => found,
        Err(error) => return (Err(not_found(error, &call)), None),
    };
    let (positional, keywords) = match call.arguments(&manifest) {
        Ok(arguments) => arguments,
        Err(wrong) => return (Err(Problem::Wrong(wrong)), Some(remote)),
    };
    let answered = remote.call_with(&call.method, &positional, &keywords).await;
    // Its access may have been revoked, or the service stopped: the next call attaches again.
    let kept = Some(remote).filter(|_| !is_dead(&answered));
    let value = answered.and_then(|answer| Ok(answer.value()?));
    (value.map_err(|error| failed(error, &call.method)), kept)
}

/// Waits until the perspective is dead.
async fn dead(remote: Remote) {
    loop {
        tokio::time::sleep(LOOK).await;
        // No object has this method: one that is alive answers so.
        if is_dead(&remote.call("?", &()).await) {
            return;
        }
    }
}

/// Whether this answer shows that the object is dead.
fn is_dead<T>(answered: &Result<T, Error>) -> bool {
    match answered {
        Err(Error::Failure(failure)) => matches!(
            failure.class.as_str(),
            "twisted.spread.pb.DeadReferenceError" | "twisted.spread.pb.PBConnectionLost"
        ),
        Err(Error::Lost(_)) => true,
        _ => false,
    }
}

/// Why there is nothing to call.
fn not_found(error: Error, call: &Call) -> Problem {
    let service = &call.service;
    let class = if let Error::Failure(failure) = &error { failure.class.as_str() } else { "" };
    match class {
        "twisted.python.failure.DefaultException" => Problem::NoKey(service.clone()),
        "twisted.cred.error.KeyNotFound" => {
            let what = format!("you have no key for {service}/{}", call.perspective.as_deref().unwrap_or_default());
            Problem::Wrong(Wrong { what, hint: "`help` shows your keys".to_owned() })
        }
        "builtins.KeyError" => Problem::Failed(format!("{service} is not serving just now")),
        _ => failed(error, ""),
    }
}

fn failed(error: Error, method: &str) -> Problem {
    match error {
        // The error names the parameters: the words were wrong.
        Error::Failure(failure)
            if failure.is("builtins.TypeError") && failure.value.starts_with(&format!("{method}(")) =>
        {
            Problem::Wrong(Wrong { what: failure.value, hint: String::new() })
        }
        Error::Failure(failure) => Problem::Failed(failure.to_string()),
        Error::Lost(why) => Problem::Failed(format!("the host has closed the connection: {why}")),
        error => Problem::Failed(error.to_string()),
    }
}

/// The common prefix of two words.
fn alike<'w>(one: &'w str, other: &str) -> &'w str {
    let pairs = one.char_indices().zip(other.chars());
    let end = pairs.take_while(|((_, letter), other)| letter == other).map(|((at, letter), _)| at + letter.len_utf8());
    &one[..end.last().unwrap_or(0)]
}
