//! One channel: a command, lines that come by a pipe, or a terminal to type on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use plugin_api::Login;
use plugin_api::client::{Error, Referenceable, Remote, Reply, Value};
use plugin_api::shell::{Wrong, json};
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::mpsc;

use crate::command::{Call, Line, Reach, Request};
use crate::line::{Done, Editor};
use crate::show;

/// How many bytes that were typed ahead wait while a command runs.
const AHEAD: usize = 64 << 10;
/// How many calls of services wait to be shown. More of them are counted.
const CALLS: usize = 256;
/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// What a command ends with that was not understood.
const USAGE: u32 = 2;

/// Serves a channel to its end.
pub(crate) async fn serve(channel: Channel<Msg>, login: Login) {
    let (mut read, write) = channel.split();
    let mut wide = None;
    let (status, console) = loop {
        let begun = match read.wait().await {
            Some(ChannelMsg::RequestPty { col_width, .. }) => {
                wide = Some(col_width as usize);
                continue;
            }
            Some(ChannelMsg::Exec { command, .. }) => Some(String::from_utf8_lossy(&command).into_owned()),
            Some(ChannelMsg::RequestShell { .. }) => None,
            Some(ChannelMsg::Close) | None => return,
            Some(_) => continue,
        };
        let mut console = Console::new(read, write, login, wide);
        let status = match (begun, wide) {
            (Some(command), _) => console.command(&command).await,
            (None, Some(wide)) => console.terminal(wide).await,
            (None, None) => console.pipe().await,
        };
        break (status, console);
    };
    // The client may have gone.
    let _ = console.write.exit_status(status).await;
    let _ = console.write.eof().await;
    let _ = console.write.close().await;
}

/// A service has called whoever is here.
struct Called {
    service: String,
    method: String,
    arguments: Value,
    keywords: Value,
}

impl Called {
    fn shown(&self, as_json: bool) -> String {
        let Self { service, method, arguments, keywords } = self;
        if as_json {
            let line = serde_json::json!({
                "service": service, "call": method,
                "arguments": json(arguments.root()), "keywords": json(keywords.root()),
            });
            return format!("{line}\n");
        }
        let positional = arguments.root().items().map(|item| item.to_value().to_string());
        let named = keywords
            .root()
            .pairs()
            .map(|(name, value)| format!("{}={}", name.as_text().unwrap_or_default(), value.to_value()));
        let all: Vec<String> = positional.chain(named).collect();
        format!("{service}: {}\n", show::escaped(&format!("{method}({})", all.join(", "))))
    }
}

/// Where a perspective is: its service, and its name, if one was given.
type Place = (String, Option<String>);

/// Whoever has logged in, at one channel.
struct Console {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    login: Login,
    /// Whether ends of lines are written for a terminal.
    terminal: bool,
    attached: HashMap<Place, Remote>,
    reach: Reach,
    calls: mpsc::Receiver<Called>,
    calling: mpsc::Sender<Called>,
    heard: Heard,
    json: bool,
    /// Whether what services call is asked for.
    follows: bool,
}

/// What has come from the client, and was not looked at yet.
#[derive(Default)]
struct Heard {
    /// What was typed.
    ahead: VecDeque<u8>,
    /// The client will send nothing more.
    ended: bool,
    /// The client has gone.
    gone: bool,
    /// How wide the terminal has become.
    resized: Option<usize>,
    /// Somebody wants what runs to end.
    interrupted: bool,
}

impl Heard {
    fn hear(&mut self, message: Option<ChannelMsg>) {
        match message {
            Some(ChannelMsg::Data { data }) => {
                // Nobody types so far ahead.
                let room = AHEAD.saturating_sub(self.ahead.len());
                self.ahead.extend(data.iter().take(room));
            }
            Some(ChannelMsg::WindowChange { col_width, .. }) => self.resized = Some(col_width as usize),
            Some(ChannelMsg::Signal { signal: Sig::INT | Sig::TERM | Sig::HUP }) => self.interrupted = true,
            Some(ChannelMsg::Eof) => self.ended = true,
            Some(ChannelMsg::Close) | None => self.gone = true,
            Some(_) => {}
        }
    }

    /// Whether what runs is to end: nobody is there any more, or has said so.
    fn gives_up(&self, terminal: bool) -> bool {
        self.gone || self.interrupted || terminal && self.ahead.contains(&INTERRUPT)
    }
}

/// What became of a command.
struct Outcome {
    text: String,
    status: u32,
}

impl Outcome {
    fn said(text: String) -> Self {
        Self { text, status: 0 }
    }
}

impl From<Wrong> for Outcome {
    fn from(Wrong { what, hint }: Wrong) -> Self {
        let hint = if hint.is_empty() { hint } else { format!("hint: {hint}\n") };
        Self { text: show::escaped(&format!("error: {what}\n{hint}")), status: USAGE }
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        let text = match &error {
            Error::Failure(failure) => format!("error: {failure}\n"),
            error => format!("error: {error}\n"),
        };
        Self { text: show::escaped(&text), status: 1 }
    }
}

impl Console {
    fn new(read: ChannelReadHalf, write: ChannelWriteHalf<Msg>, login: Login, wide: Option<usize>) -> Self {
        let (calling, calls) = mpsc::channel(CALLS);
        Self {
            read,
            write,
            login,
            terminal: wide.is_some(),
            attached: HashMap::new(),
            reach: Reach::default(),
            calls,
            calling,
            heard: Heard::default(),
            json: false,
            follows: false,
        }
    }

    /// Runs one command.
    async fn command(&mut self, text: &str) -> u32 {
        let (outcome, follows) = match Line::read(text) {
            Err(wrong) => (wrong.into(), false),
            Ok(Line { json, follow, request }) => {
                (self.json, self.follows) = (json, follow);
                (self.run(request).await, follow)
            }
        };
        let status = outcome.status;
        self.show(&outcome).await;
        if follows && status == 0 {
            self.follow().await;
        }
        status
    }

    /// Shows what services call, until the client goes.
    async fn follow(&mut self) {
        while !(self.heard.gives_up(self.terminal) || self.login.is_ended()) {
            tokio::select! {
                Some(called) = self.calls.recv() => self.say(&called.shown(self.json)).await,
                message = self.read.wait() => self.heard.hear(message),
            }
        }
    }

    /// Runs line by line what comes by a pipe.
    async fn pipe(&mut self) -> u32 {
        let (mut status, mut line) = (0, Vec::new());
        loop {
            while let Some(byte) = self.heard.ahead.pop_front() {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&std::mem::take(&mut line)).trim_end().to_owned();
                if text == "exit" {
                    return status;
                }
                status = self.command(&text).await;
            }
            if self.heard.ended || self.heard.gone || line.len() > AHEAD {
                break;
            }
            tokio::select! {
                Some(called) = self.calls.recv() => self.say(&called.shown(self.json)).await,
                message = self.read.wait() => self.heard.hear(message),
            }
        }
        let last = String::from_utf8_lossy(&line).trim().to_owned();
        if last.is_empty() || self.heard.gone { status } else { self.command(&last).await }
    }

    /// A terminal to type on.
    async fn terminal(&mut self, wide: usize) -> u32 {
        let mut editor = Editor::new(&format!("{}> ", show::escaped(self.login.identity())), wide);
        let mut out = String::new();
        self.look().await;
        editor.draw(&mut out);
        loop {
            self.put(&mut out).await;
            if let Some(wide) = self.heard.resized.take() {
                editor.resize(wide);
                editor.draw(&mut out);
            }
            if let Some(byte) = self.heard.ahead.pop_front() {
                if self.done(&mut editor, byte, &mut out).await {
                    return 0;
                }
                continue;
            }
            if self.heard.ended || self.heard.gone {
                return 0;
            }
            tokio::select! {
                Some(called) = self.calls.recv() => {
                    Editor::hide(&mut out);
                    out.push_str(&called.shown(self.json).replace('\n', "\r\n"));
                    editor.draw(&mut out);
                }
                message = self.read.wait() => self.heard.hear(message),
            }
        }
    }

    /// Serves a byte that was typed; true: that was the end.
    async fn done(&mut self, editor: &mut Editor, byte: u8, out: &mut String) -> bool {
        match editor.typed(byte, out) {
            None => return false,
            Some(Done::End) => {
                self.put(out).await;
                return true;
            }
            Some(Done::Interrupt) => {}
            Some(Done::Complete(before)) => return self.complete(editor, &before, out).await,
            Some(Done::Line(text)) => {
                self.put(out).await;
                match Line::read(&text) {
                    Err(wrong) => self.show(&wrong.into()).await,
                    Ok(Line { request: Request::Exit, .. }) => return true,
                    Ok(Line { json, follow, request }) => {
                        (self.json, self.follows) = (json, follow);
                        self.heard.interrupted = false;
                        let outcome = self.run(request).await;
                        self.show(&outcome).await;
                        if follow {
                            self.follow().await;
                            self.heard.ahead.clear();
                        }
                    }
                }
            }
        }
        editor.draw(out);
        false
    }

    async fn complete(&mut self, editor: &mut Editor, before: &str, out: &mut String) -> bool {
        self.look().await;
        let (start, found) = self.reach.complete(before);
        match found.as_slice() {
            [] => out.push('\u{7}'),
            [only] => {
                let blank = if only.ends_with('=') { "" } else { " " };
                editor.complete(start, &format!("{only}{blank}"), out);
            }
            [first, rest @ ..] => {
                let common = rest.iter().fold(first.as_str(), |common, other| shared(common, other));
                if common.len() > before.len() - start {
                    editor.complete(start, common, out);
                } else {
                    out.push_str(&format!("\r\n{}\r\n", show::escaped(&found.join("  "))));
                    editor.draw(out);
                }
            }
        }
        false
    }

    /// Does what is asked for, while what comes from the client is heard.
    async fn run(&mut self, request: Request) -> Outcome {
        match request {
            Request::Nothing if self.terminal => Outcome::said(String::new()),
            Request::Exit => Outcome::said(String::new()),
            Request::Nothing => self.help(&[]).await,
            Request::Help(words) => self.help(&words).await,
            Request::Call(call) => self.call(call).await,
        }
    }

    async fn help(&mut self, words: &[String]) -> Outcome {
        self.look().await;
        self.reach.help(words).map_or_else(Into::into, |text| Outcome::said(show::escaped(&text)))
    }

    /// Learns what whoever has logged in can reach now. What cannot be found out is not known.
    async fn look(&mut self) {
        let Ok(keys) = self.login.keys().await else { return };
        let mut reach = Reach::default();
        for (service, _) in &keys {
            if !reach.services.contains_key(service) {
                let manifest = self.login.describe(service).await.ok();
                reach.services.insert(service.clone(), manifest);
            }
        }
        let several = |service: &str| keys.iter().filter(|(of, _)| of == service).count() > 1;
        reach.perspectives = keys.iter().filter(|(service, _)| several(service)).cloned().collect();
        self.reach = reach;
    }

    async fn call(&mut self, call: Call) -> Outcome {
        let place = (call.service.clone(), call.perspective.clone());
        let (login, calling) = (self.login.clone(), self.calling.clone());
        let attached = self.attached.get(&place).cloned();
        let calling = call_of(login, call, attached, calling);
        let mut calling = std::pin::pin!(calling);
        let (called, attached) = loop {
            tokio::select! {
                done = &mut calling => break done,
                message = self.read.wait(), if !self.heard.gone => self.heard.hear(message),
                Some(called) = self.calls.recv() => {
                    let text = called.shown(self.json);
                    // Beside the answer, unless what is called is what is asked for.
                    if self.follows { self.say(&text).await } else { self.tell(&text).await }
                }
            }
            if self.heard.gives_up(self.terminal) {
                self.heard.ahead.clear();
                return Outcome { text: "^C\n".to_owned(), status: 130 };
            }
        };
        match attached {
            Some(attached) => drop(self.attached.insert(place, attached)),
            None => drop(self.attached.remove(&place)),
        }
        match called {
            Ok(value) if self.json => Outcome::said(format!("{}\n", json(value.root()))),
            Ok(value) => Outcome::said(show::answer(&value)),
            Err(Problem::Wrong(wrong)) => wrong.into(),
            Err(Problem::Call(error)) => error.into(),
            Err(Problem::NoKey(service)) => {
                self.look().await;
                self.reach.unknown(&service).into()
            }
        }
    }

    /// Shows what became of a command: what went wrong goes to where errors go.
    async fn show(&mut self, outcome: &Outcome) {
        if outcome.status == 0 || self.terminal {
            self.say(&outcome.text).await;
        } else {
            self.tell(&outcome.text).await;
        }
    }

    /// Writes a text, with ends of lines as the other side has them.
    async fn say(&mut self, text: &str) {
        let mut text = if self.terminal { text.replace('\n', "\r\n") } else { text.to_owned() };
        self.put(&mut text).await;
    }

    /// The same, beside the answers.
    async fn tell(&mut self, text: &str) {
        if self.terminal {
            return self.say(text).await;
        }
        if !text.is_empty() && self.write.extended_data_bytes(1, text.as_bytes().to_vec()).await.is_err() {
            self.heard.gone = true;
        }
    }

    /// Writes what is to be drawn, and waits until the client has room for it.
    async fn put(&mut self, out: &mut String) {
        if out.is_empty() {
            return;
        }
        let text = std::mem::take(out).into_bytes();
        let Self { write, read, heard, .. } = self;
        let mut writing = std::pin::pin!(write.data_bytes(text));
        while !heard.gone {
            tokio::select! {
                written = &mut writing => {
                    heard.gone |= written.is_err();
                    return;
                }
                // What the client sends meanwhile is heard, or neither side would go on.
                message = read.wait() => heard.hear(message),
            }
        }
    }
}

/// Why a call has come to nothing.
enum Problem {
    Wrong(Wrong),
    Call(Error),
    NoKey(String),
}

/// Calls a method, and attaches first where that is not done yet. Answers with what the attachment is to be kept as.
async fn call_of(
    login: Login,
    call: Call,
    attached: Option<Remote>,
    calls: mpsc::Sender<Called>,
) -> (Result<Value, Problem>, Option<Remote>) {
    let (manifest, remote) = match found(&login, &call, attached, calls).await {
        Ok(found) => found,
        Err(problem) => return (Err(problem), None),
    };
    let (positional, keywords) = match call.arguments(&manifest) {
        Ok(arguments) => arguments,
        Err(wrong) => return (Err(Problem::Wrong(wrong)), Some(remote)),
    };
    let answered = remote.call_with(&call.method, &positional, &keywords).await;
    // What it came by may have been taken away, or the service has been stopped: next time it is attached anew.
    let dead = matches!(&answered, Err(Error::Failure(failure)) if failure.class.contains("Dead")) || lost(&answered);
    let value = answered.and_then(|answer| Ok(answer.value()?));
    (value.map_err(Problem::Call), (!dead).then_some(remote))
}

fn lost<T>(answered: &Result<T, Error>) -> bool {
    matches!(answered, Err(Error::Lost(_)))
}

async fn found(
    login: &Login,
    call: &Call,
    attached: Option<Remote>,
    calls: mpsc::Sender<Called>,
) -> Result<(plugin_api::manifest::Manifest, Remote), Problem> {
    let no_key = |error: Error| match &error {
        Error::Failure(failure) if failure.is("twisted.python.failure.DefaultException") || failure.is("KeyError") => {
            Problem::NoKey(call.service.clone())
        }
        _ => Problem::Call(error),
    };
    let manifest = login.describe(&call.service).await.map_err(no_key)?;
    if let Some(attached) = attached {
        return Ok((manifest, attached));
    }
    let mind: Arc<dyn Referenceable> = Arc::new(mind(call.service.clone(), calls));
    let remote = login.attach(&call.service, call.perspective.as_deref(), Some(mind)).await.map_err(no_key)?;
    Ok((manifest, remote))
}

/// What a service calls is shown.
fn mind(service: String, calls: mpsc::Sender<Called>) -> impl Fn(&str, Value, Value) -> Reply {
    move |method: &str, arguments: Value, keywords: Value| -> Reply {
        let (service, calls, method) = (service.clone(), calls.clone(), method.to_owned());
        Box::pin(async move {
            // A service that waits for the answer waits for whoever reads it.
            let _ = calls.send(Called { service, method, arguments, keywords }).await;
            Ok(Value::none())
        })
    }
}

/// What two words begin with alike.
fn shared<'w>(one: &'w str, other: &str) -> &'w str {
    let mut end = 0;
    for ((at, letter), other) in one.char_indices().zip(other.chars()) {
        if letter != other {
            break;
        }
        end = at + letter.len_utf8();
    }
    &one[..end]
}
