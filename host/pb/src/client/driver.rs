//! The task that drives a connection: it owns the broker, and executes the commands of the handles.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroize;

use super::error::Error;
use super::flow::{Bytes, Flow};
use super::link::{Command, News, WeakLink};
use super::options::Options;
use super::tables::Tables;
use crate::{Broker, Event, Role};

/// The driver stops reading while this many bytes wait to be written: the other side makes calls without reading the answers.
const UNREAD: usize = 16 << 20;
/// The most calls without an answer. With more, the driver ends the connection: the other side does not answer any more.
const UNANSWERED: usize = 1 << 16;
/// How long the driver continues to write after the last handle was dropped.
const LAST: Duration = Duration::from_secs(10);
/// The size of a read, in bytes.
const READ: usize = 64 << 10;

/// Drives a connection until it ends, or its last handle is dropped. `ready` is signalled when the other side has said that it
/// speaks PB.
pub(super) async fn drive<S: AsyncRead + AsyncWrite>(
    stream: S,
    commands: mpsc::UnboundedReceiver<Command>,
    link: WeakLink,
    options: Options,
    ready: oneshot::Sender<Result<(), Error>>,
) {
    let broker = Broker::new(Role::Client, options.limits, options.references);
    let unanswered = UNANSWERED.max(options.calls.saturating_mul(4));
    let driver = Driver { broker, tables: Tables::new(link.clone()), ready: Some(ready), unanswered };
    let mut ending = Ending { driver, commands, link };
    let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
    let why = ending.driver.run(&mut reader, &mut writer, &mut ending.commands).await;
    // In this order: whoever sees that the connection is closed finds why.
    ending.link.flow.end(&why);
    ending.commands.close();
    while let Some(command) = ending.commands.recv().await {
        not_sent(command, &ending.link.flow);
    }
    drop(ending);
    // A peer that does not read misses the shutdown.
    let _ = tokio::time::timeout(Duration::from_secs(1), writer.shutdown()).await;
}

/// Notifies everyone who waits that the connection has ended, whatever the reason.
struct Ending {
    driver: Driver,
    commands: mpsc::UnboundedReceiver<Command>,
    link: WeakLink,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.commands.close();
        let flow = &self.link.flow;
        flow.end("its task has ended");
        if let Some(ready) = self.driver.ready.take() {
            let _ = ready.send(Err(flow.lost()));
        }
        for (_, (waiting, _)) in self.driver.tables.waiting.drain() {
            let _ = waiting.send(Err(flow.lost()));
        }
        while let Ok(command) = self.commands.try_recv() {
            not_sent(command, flow);
        }
        if self.driver.tables.secret {
            self.driver.broker.output.bytes.zeroize();
        }
        for copy in self.driver.tables.copies.values() {
            copy.news.send_replace(News::Ended);
        }
    }
}

/// Reports to the caller that this call was not sent.
fn not_sent(command: Command, flow: &Flow) {
    if let Command::Call { done: Some((done, room)), .. } = command {
        room.give_back();
        let _ = done.send(Err(flow.not_sent()));
    }
}

struct Driver {
    broker: Broker<u64>,
    tables: Tables,
    ready: Option<oneshot::Sender<Result<(), Error>>>,
    /// The most calls without an answer: see [`UNANSWERED`].
    unanswered: usize,
}

/// Output that is being written.
#[derive(Default)]
struct Going {
    bytes: Vec<u8>,
    gone: usize,
    /// It contains a password.
    secret: bool,
    /// The room that it occupies.
    room: Vec<Bytes>,
    /// Everything written so far has been flushed.
    flushed: bool,
}

impl Going {
    fn left(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Takes the pending output, if everything before it is written.
    fn refill(&mut self, output: &mut Vec<u8>, tables: &mut Tables) {
        if self.gone < self.bytes.len() {
            return;
        }
        self.forget();
        self.bytes.shrink_to(READ);
        std::mem::swap(&mut self.bytes, output);
        self.secret = std::mem::take(&mut tables.secret);
        self.room = std::mem::take(&mut tables.unwritten);
        if self.bytes.is_empty() {
            self.room.clear();
        }
    }

    fn forget(&mut self) {
        if self.secret {
            self.bytes.zeroize();
        }
        self.bytes.clear();
        self.gone = 0;
    }

    /// Writes a part of it (`Some`), or flushes what was written (`None`). It may be cancelled and called again.
    async fn push(&self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<Option<usize>> {
        match self.left() {
            [] => writer.flush().await.map(|()| None),
            left => writer.write(left).await.map(Some),
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Driver {
    /// Runs until the connection ends. Returns the reason.
    async fn run(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> String {
        let mut buffer = vec![0; READ];
        // Input is read while this is written. Otherwise both ends could wait for each other.
        let mut going = Going::default();
        going.flushed = true;
        let mut unused = None;
        loop {
            going.refill(&mut self.broker.output.bytes, &mut self.tables);
            let backlog = going.left().len() + self.broker.output.bytes.len();
            // Output that was requested earlier is still sent.
            if unused.is_some() && backlog == 0 && going.flushed {
                return "it is not used any more".to_owned();
            }
            let handled = self.ready.is_none() && unused.is_none();
            tokio::select! {
                written = going.push(writer), if !going.left().is_empty() || !going.flushed => match written {
                    Ok(None) => going.flushed = true,
                    Ok(Some(0)) => return "the host accepts no more data".to_owned(),
                    Ok(Some(count)) => (going.gone, going.flushed) = (going.gone + count, false),
                    Err(error) => return error.to_string(),
                },
                read = reader.read(&mut buffer), if backlog < UNREAD => match read {
                    Ok(0) => return "the host closed it".to_owned(),
                    Ok(count) => self.broker.receive(&buffer[..count]),
                    Err(error) => return error.to_string(),
                },
                command = commands.recv(), if handled => match command {
                    Some(command) => self.tables.command(&mut self.broker.output, command),
                    None => unused = Some(Instant::now() + LAST),
                },
                () = sleep_until(unused.unwrap_or_else(Instant::now)), if unused.is_some() => {
                    return "the host does not read the remaining output".to_owned();
                }
                () = given_up(&mut self.ready) => return "nobody waits for it any more".to_owned(),
            }
            // Commands that are already queued go out in the same write.
            while self.ready.is_none()
                && let Ok(command) = commands.try_recv()
            {
                self.tables.command(&mut self.broker.output, command);
            }
            if let Err(fault) = self.events() {
                return fault;
            }
            if self.tables.waiting.len() > self.unanswered {
                return "the host does not answer".to_owned();
            }
        }
    }

    fn events(&mut self) -> Result<(), String> {
        let Broker { input, output } = &mut self.broker;
        loop {
            match input.event(output).map_err(|fault| fault.to_string())? {
                None => return Ok(()),
                Some(Event::Ready) => {
                    if let Some(ready) = self.ready.take() {
                        let _ = ready.send(Ok(()));
                    }
                }
                Some(event) => self.tables.event(output, event),
            }
        }
    }
}

/// Resolves when nobody waits any more for the connection to become ready.
async fn given_up(ready: &mut Option<oneshot::Sender<Result<(), Error>>>) {
    match ready {
        Some(ready) => ready.closed().await,
        None => std::future::pending().await,
    }
}
