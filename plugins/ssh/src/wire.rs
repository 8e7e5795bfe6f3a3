//! A channel's input and output. Input is read even while something else is awaited: a channel that nobody reads would block all
//! others of its connection.

use std::collections::VecDeque;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use plugin_api::Client;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};

use crate::limits::Limits;

/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// How many bytes wait in all channels of a connection; the host is notified of it.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: AtomicUsize,
    pub(crate) limits: Limits,
    /// `None` in tests.
    client: Option<Client>,
}

impl Waiting {
    pub(crate) fn new(client: Client, limits: Limits) -> Self {
        Self { bytes: AtomicUsize::new(0), limits, client: Some(client) }
    }

    /// Adds bytes. Returns the total.
    fn add(&self, bytes: usize) -> usize {
        let all = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tell();
        all
    }

    /// Subtracts bytes.
    fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        if let Some(client) = &self.client {
            client.set_buffered(self.bytes.load(Ordering::Relaxed));
        }
    }
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// One command: other input is ignored.
    Command,
    /// Lines from a pipe.
    Pipe,
    /// A terminal of this width.
    Terminal(usize),
}

/// Input from the client that was not processed yet.
pub(crate) struct Heard {
    by: Use,
    /// What was typed.
    ahead: VecDeque<u8>,
    /// How many interrupts are in `ahead`, if there is a terminal.
    interrupts: usize,
    /// How much waits in all channels of the connection.
    waiting: Arc<Waiting>,
    terminal: bool,
    /// The client will send nothing more.
    pub(crate) ended: bool,
    /// The client has gone.
    pub(crate) gone: bool,
    /// The input has exceeded its limit: no more is accepted.
    over: bool,
    /// The new width of the terminal.
    pub(crate) resized: Option<usize>,
    /// The client wants the running command to end.
    interrupted: bool,
    /// How many bytes of `ahead` are known to have no line end.
    looked: usize,
}

/// The next line from a pipe.
pub(crate) enum Piped {
    /// A whole line, without its end; or what came before the end of the input.
    Line(Vec<u8>),
    /// A line that is longer than may be. `true`: its end has come, and it was discarded.
    TooLong(bool),
}

impl Heard {
    fn new(by: Use, terminal: bool, waiting: Arc<Waiting>) -> Self {
        let (ahead, interrupts, resized) = (VecDeque::new(), 0, None);
        let (ended, gone, over, interrupted) = (false, false, false, false);
        Self { by, ahead, interrupts, waiting, terminal, ended, gone, over, resized, interrupted, looked: 0 }
    }

    fn hear(&mut self, message: Option<ChannelMsg>) {
        match message {
            Some(ChannelMsg::Data { data }) => self.take(&data),
            Some(ChannelMsg::WindowChange { col_width, .. }) => self.resized = Some(col_width as usize),
            Some(ChannelMsg::Signal { signal: Sig::INT | Sig::TERM | Sig::HUP }) => self.interrupted = true,
            Some(ChannelMsg::Eof) => self.ended = true,
            Some(ChannelMsg::Close) | None => self.gone = true,
            Some(_) => {}
        }
    }

    fn take(&mut self, data: &[u8]) {
        if self.over || self.by == Use::Command && !self.terminal {
            return;
        }
        let Limits { typed, piped, .. } = self.waiting.limits;
        let own = if self.terminal { typed } else { piped };
        let all = self.waiting.add(data.len());
        if self.ahead.len() + data.len() > own || all > piped {
            self.waiting.sub(data.len());
            self.over = true;
            // An incomplete command must not run.
            let whole = self.ahead.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.forget(whole..);
            return;
        }
        self.ahead.extend(data);
        if self.terminal {
            self.interrupts += data.iter().filter(|byte| **byte == INTERRUPT).count();
        }
    }

    fn forget(&mut self, which: impl RangeBounds<usize>) {
        let forgotten = self.ahead.drain(which).count();
        self.waiting.sub(forgotten);
        self.looked = 0;
    }

    /// The next byte.
    pub(crate) fn next(&mut self) -> Option<u8> {
        let byte = self.ahead.pop_front()?;
        self.waiting.sub(1);
        self.interrupts -= usize::from(self.terminal && byte == INTERRUPT);
        Some(byte)
    }

    /// Takes the next line of at most `most` bytes. `None`: it is not complete. Until then its bytes stay here, and are counted.
    pub(crate) fn line(&mut self, most: usize) -> Option<Piped> {
        let end = self.ahead.range(self.looked..).position(|byte| *byte == b'\n').map(|at| self.looked + at);
        self.looked = self.ahead.len();
        let length = match end {
            Some(at) => at,
            None if self.ahead.len() > most => return Some(Piped::TooLong(false)),
            None if (self.ended || self.gone) && !self.ahead.is_empty() => self.ahead.len(),
            None => return None,
        };
        let taken = length + usize::from(end.is_some());
        let line: Vec<u8> = self.ahead.drain(..taken).take(length).collect();
        self.waiting.sub(taken);
        self.looked = 0;
        Some(if length > most { Piped::TooLong(true) } else { Piped::Line(line) })
    }

    /// Whether something waits to be processed.
    pub(crate) fn has_more(&self) -> bool {
        !self.ahead.is_empty() || self.over || self.resized.is_some()
    }

    /// Whether the input has exceeded its limit. Reported once: from now on, input is accepted again.
    pub(crate) fn was_over(&mut self) -> bool {
        std::mem::take(&mut self.over)
    }

    /// Whether the running command must end: the client has gone, or has interrupted it.
    pub(crate) fn gives_up(&self) -> bool {
        self.gone || self.interrupted || self.interrupts > 0
    }

    /// The running command has ended, for any reason: interrupts for it must not end the next command, and what was typed before
    /// them is discarded.
    pub(crate) fn forget_interrupts(&mut self) {
        self.interrupted = false;
        if self.interrupts > 0 {
            self.interrupts = 0;
            let at = self.ahead.iter().rposition(|byte| *byte == INTERRUPT);
            self.forget(..at.map_or(0, |at| at + 1));
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.forget(..);
    }
}

/// A channel.
pub(crate) struct Wire {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    pub(crate) heard: Heard,
    /// Whether ends of lines are written for a terminal, and errors go where answers do.
    pub(crate) terminal: bool,
}

impl Wire {
    /// Waits until the client says what the channel is for. Also returns the command, if it is one. `None`: the client wants
    /// nothing.
    pub(crate) async fn begin(channel: Channel<Msg>, waiting: Arc<Waiting>) -> Option<(Self, Use, String)> {
        let (mut read, write) = channel.split();
        let mut wide = None;
        let (by, command) = loop {
            match read.wait().await? {
                ChannelMsg::RequestPty { col_width, .. } => wide = Some(col_width as usize),
                ChannelMsg::WindowChange { col_width, .. } => wide = wide.map(|_| col_width as usize),
                ChannelMsg::Exec { command, .. } => {
                    break (Use::Command, String::from_utf8_lossy(&command).into_owned());
                }
                ChannelMsg::RequestShell { .. } => break (wide.map_or(Use::Pipe, Use::Terminal), String::new()),
                ChannelMsg::Close => return None,
                _ => {}
            }
        };
        let terminal = wide.is_some();
        Some((Self { read, write, heard: Heard::new(by, terminal, waiting), terminal }, by, command))
    }

    /// Waits for something from the client.
    pub(crate) async fn hear(&mut self) {
        let message = self.read.wait().await;
        self.heard.hear(message);
    }

    /// Writes a text, with line ends as the other side expects them.
    pub(crate) async fn say(&mut self, text: &str) {
        let text = if self.terminal { text.replace('\n', "\r\n") } else { text.to_owned() };
        self.put(text).await;
    }

    /// The same, but to standard error if there is no terminal.
    pub(crate) async fn tell(&mut self, text: &str) {
        if self.terminal {
            return self.say(text).await;
        }
        if !text.is_empty() {
            let Self { read, write, heard, .. } = self;
            let written = hearing(read, heard, write.extended_data_bytes(1, text.as_bytes().to_vec())).await;
            heard.gone |= !matches!(written, Some(Ok(())));
        }
    }

    /// Writes a text unchanged, and waits until the client has room for it.
    pub(crate) async fn put(&mut self, text: String) {
        if !text.is_empty() {
            let Self { read, write, heard, .. } = self;
            let written = hearing(read, heard, write.data_bytes(text.into_bytes())).await;
            heard.gone |= !matches!(written, Some(Ok(())));
        }
    }

    /// Waits for a future while input is read. Returns `None` if the client has gone.
    pub(crate) async fn hearing<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let Self { read, heard, .. } = self;
        hearing(read, heard, done).await
    }

    /// Sends the exit status, and closes the channel.
    pub(crate) async fn end(mut self, status: u32) {
        let Self { read, write, heard, .. } = &mut self;
        let last = async {
            // The client may have gone.
            let _ = write.exit_status(status).await;
            let _ = write.eof().await;
            let _ = write.close().await;
        };
        hearing(read, heard, last).await;
    }
}

/// Waits for a future while input is read. Returns `None` if the client has gone.
async fn hearing<T>(read: &mut ChannelReadHalf, heard: &mut Heard, done: impl Future<Output = T>) -> Option<T> {
    let mut done = std::pin::pin!(done);
    while !heard.gone {
        tokio::select! {
            done = &mut done => return Some(done),
            message = read.wait() => heard.hear(message),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &'static [u8]) -> Option<ChannelMsg> {
        Some(ChannelMsg::Data { data: bytes.into() })
    }

    fn heard(by: Use) -> (Heard, Arc<Waiting>) {
        let waiting = Arc::<Waiting>::default();
        (Heard::new(by, matches!(by, Use::Terminal(_)), Arc::clone(&waiting)), waiting)
    }

    fn rest(heard: &mut Heard) -> Vec<u8> {
        std::iter::from_fn(|| heard.next()).collect()
    }

    #[test]
    fn lines_are_taken_whole_and_count_until_then() {
        let (mut heard, waiting) = heard(Use::Pipe);
        let counted = || waiting.bytes.load(Ordering::Relaxed);
        let line = |heard: &mut Heard| match heard.line(5) {
            None => "nothing".to_owned(),
            Some(Piped::Line(line)) => String::from_utf8(line).unwrap(),
            Some(Piped::TooLong(whole)) => format!("too long: {whole}"),
        };
        heard.hear(data(b"on"));
        assert_eq!((line(&mut heard).as_str(), counted()), ("nothing", 2));
        heard.hear(data(b"e\n\nfives\nsixsix\ntwo"));
        for (said, left) in [("one", 17), ("", 16), ("fives", 10), ("too long: true", 3), ("nothing", 3)] {
            assert_eq!((line(&mut heard).as_str(), counted()), (said, left));
        }
        // A line that cannot become short enough is known to be too long, and its bytes are given back with the channel.
        heard.hear(data(b" and more"));
        assert_eq!((line(&mut heard).as_str(), counted()), ("too long: false", 12));
        // The end of the input ends a line.
        let (mut last, _) = super::tests::heard(Use::Pipe);
        last.hear(data(b"bye"));
        last.hear(Some(ChannelMsg::Eof));
        assert_eq!((line(&mut last).as_str(), line(&mut last).as_str()), ("bye", "nothing"));
    }

    #[test]
    fn waiting_input_is_bounded_and_contains_whole_commands() {
        let line = b"todo add something\n";
        for (by, room) in
            [(Use::Command, 0), (Use::Terminal(80), Limits::default().typed), (Use::Pipe, Limits::default().piped)]
        {
            let (mut heard, waiting) = heard(by);
            // In pieces that end anywhere.
            let all = line.repeat(Limits::default().piped / line.len() + 100_000);
            for piece in all.chunks(1000) {
                heard.hear(Some(ChannelMsg::Data { data: piece.to_vec().into() }));
            }
            assert_eq!(waiting.bytes.load(Ordering::Relaxed), heard.ahead.len());
            assert!(heard.ahead.len() <= room && heard.ahead.len() + 2000 > room, "{by:?}: {}", heard.ahead.len());
            assert_eq!(heard.was_over(), room > 0, "{by:?}");
            let taken = rest(&mut heard);
            assert!(
                all.starts_with(&taken) && taken.len().is_multiple_of(line.len()),
                "{by:?}: whole lines, from the first on"
            );
            assert_eq!(waiting.bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn channels_of_a_connection_share_the_limit_of_waiting_input() {
        let (mut one, waiting) = heard(Use::Pipe);
        let mut other = Heard::new(Use::Pipe, false, Arc::clone(&waiting));
        one.take(&vec![b'\n'; Limits::default().piped - 10]);
        other.take(&[b'\n'; 11]);
        assert!(other.was_over() && !one.was_over());
        drop(one);
        other.take(&[b'\n'; 11]);
        assert!(!other.was_over());
        drop(other);
        assert_eq!(waiting.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_interrupt_ends_one_command_and_not_the_next() {
        let (mut typed, _) = heard(Use::Terminal(80));
        typed.hear(data(b"todo\x03next"));
        assert!(typed.gives_up());
        typed.forget_interrupts();
        assert!(!typed.gives_up());
        assert_eq!(rest(&mut typed), b"next");
        typed.hear(data(b"\x03"));
        assert_eq!((typed.next(), typed.gives_up()), (Some(INTERRUPT), false), "it was looked at as a key");
        let (mut piped, _) = heard(Use::Pipe);
        piped.hear(data(b"\x03"));
        assert!(!piped.gives_up(), "a byte is no key where there is no terminal");
        piped.hear(Some(ChannelMsg::Signal { signal: Sig::INT }));
        assert!(piped.gives_up());
        piped.forget_interrupts();
        assert!(!piped.gives_up());
    }
}
