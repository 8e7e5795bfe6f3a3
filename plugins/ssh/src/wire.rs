//! A channel's two ways. Whatever is waited for, the client is heard meanwhile: a channel that nobody reads would hold up all
//! others of its connection.

use std::collections::VecDeque;

use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};

/// How many bytes that were typed ahead wait; more are not taken.
const TYPED: usize = 64 << 10;
/// How many bytes of commands by a pipe wait; more of them end the session.
const PIPED: usize = 1 << 20;
/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// One command: what else comes is for nobody.
    Command,
    /// Lines, by a pipe.
    Pipe,
    /// A terminal, so wide.
    Terminal(usize),
}

/// What has come from the client, and was not looked at yet.
pub(crate) struct Heard {
    /// How much may wait.
    room: usize,
    /// What was typed.
    pub(crate) ahead: VecDeque<u8>,
    /// The client will send nothing more.
    pub(crate) ended: bool,
    /// The client has gone.
    pub(crate) gone: bool,
    /// More has come than there was room for.
    pub(crate) over: bool,
    /// How wide the terminal has become.
    pub(crate) resized: Option<usize>,
    /// Somebody wants what runs to end.
    pub(crate) interrupted: bool,
    terminal: bool,
}

impl Heard {
    fn new(by: Use, terminal: bool) -> Self {
        let room = match by {
            Use::Command if !terminal => 0,
            Use::Command | Use::Terminal(_) => TYPED,
            Use::Pipe => PIPED,
        };
        let (ended, gone, over, interrupted) = (false, false, false, false);
        Self { room, ahead: VecDeque::new(), ended, gone, over, resized: None, interrupted, terminal }
    }

    fn hear(&mut self, message: Option<ChannelMsg>) {
        match message {
            Some(ChannelMsg::Data { data }) => {
                let room = self.room.saturating_sub(self.ahead.len());
                self.over |= data.len() > room;
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
    pub(crate) fn gives_up(&self) -> bool {
        self.gone || self.interrupted || self.terminal && self.ahead.contains(&INTERRUPT)
    }

    /// What runs has ended, for whatever reason: what gave it up is over.
    pub(crate) fn goes_on(&mut self) {
        self.interrupted = false;
        if let Some(at) = self.ahead.iter().rposition(|byte| self.terminal && *byte == INTERRUPT) {
            self.ahead.drain(..=at);
        }
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
    /// Waits for what the client wants of the channel: a command, if it is one. `None`: it wants nothing.
    pub(crate) async fn begin(channel: Channel<Msg>) -> Option<(Self, Use, String)> {
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
        Some((Self { read, write, heard: Heard::new(by, terminal), terminal }, by, command))
    }

    /// Waits for something from the client.
    pub(crate) async fn hear(&mut self) {
        let message = self.read.wait().await;
        self.heard.hear(message);
    }

    /// Writes a text, with ends of lines as the other side has them.
    pub(crate) async fn say(&mut self, text: &str) {
        let text = if self.terminal { text.replace('\n', "\r\n") } else { text.to_owned() };
        self.put(text).await;
    }

    /// The same, beside the answers.
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

    /// Writes what is to be drawn, and waits until the client has room for it.
    pub(crate) async fn put(&mut self, text: String) {
        if !text.is_empty() {
            let Self { read, write, heard, .. } = self;
            let written = hearing(read, heard, write.data_bytes(text.into_bytes())).await;
            heard.gone |= !matches!(written, Some(Ok(())));
        }
    }

    /// Waits for something while the client is heard. `None`: it was given up.
    pub(crate) async fn hearing<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let Self { read, heard, .. } = self;
        hearing(read, heard, done).await
    }

    /// Says how it has ended.
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

/// Waits for something while the client is heard. `None`: the client has gone.
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

    #[test]
    fn what_waits_is_bounded_and_nothing_is_lost_unsaid() {
        for (by, room) in [(Use::Command, 0), (Use::Terminal(80), TYPED), (Use::Pipe, PIPED)] {
            let mut heard = Heard::new(by, matches!(by, Use::Terminal(_)));
            (0..=PIPED / 1024).for_each(|_| heard.hear(data(&[b'x'; 1024])));
            assert_eq!((heard.ahead.len(), heard.over), (room, true), "{by:?}");
        }
        let mut heard = Heard::new(Use::Pipe, false);
        heard.hear(data(b"todo list\n"));
        assert_eq!((heard.ahead.len(), heard.over), (10, false));
    }

    #[test]
    fn what_gives_a_command_up_does_not_give_up_the_next() {
        let mut heard = Heard::new(Use::Terminal(80), true);
        heard.hear(data(b"todo\x03next"));
        assert!(heard.gives_up());
        heard.goes_on();
        assert!(!heard.gives_up());
        assert_eq!(heard.ahead, b"next");
        let mut piped = Heard::new(Use::Pipe, false);
        piped.hear(data(b"\x03"));
        assert!(!piped.gives_up(), "a byte is no key where there is no terminal");
        piped.hear(Some(ChannelMsg::Signal { signal: Sig::INT }));
        assert!(piped.gives_up());
        piped.goes_on();
        assert!(!piped.gives_up());
    }
}
