//! The task that drives a connection: it owns the broker, and does what handles ask for.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroize;

use super::error::Error;
use super::link::{Command, News, WeakLink};
use super::options::Options;
use super::tables::Tables;
use crate::{Broker, Event, Role};

/// While so many bytes wait to be written, no more is taken from the handles.
const BACKLOG: usize = 1 << 20;
/// While so many do, nothing is read either: the other side calls, and does not read the answers.
const UNREAD: usize = 16 << 20;
/// How much is read at once.
const READ: usize = 64 << 10;

/// Drives a connection until it ends, or nobody uses it any more. `ready` hears when the other side has said that it speaks PB.
pub(super) async fn drive<S: AsyncRead + AsyncWrite>(
    stream: S,
    commands: mpsc::UnboundedReceiver<Command>,
    link: WeakLink,
    options: Options,
    ready: oneshot::Sender<Result<(), Error>>,
) {
    let flow = Arc::clone(&link.flow);
    let broker = Broker::new(Role::Client, options.limits, options.references);
    let mut driver = Driver { broker, tables: Tables::new(link), ready: Some(ready) };
    let why = driver.run(stream, commands).await;
    flow.end(&why);
    if let Some(ready) = driver.ready {
        let _ = ready.send(Err(Error::Lost(why.clone())));
    }
    for (waiting, _) in driver.tables.waiting.into_values() {
        let _ = waiting.send(Err(Error::Lost(why.clone())));
    }
    for copy in driver.tables.copies.values() {
        copy.news.send_replace(News::Ended);
    }
}

struct Driver {
    broker: Broker<u64>,
    tables: Tables,
    ready: Option<oneshot::Sender<Result<(), Error>>>,
}

/// What is on its way out.
#[derive(Default)]
struct Going {
    bytes: Vec<u8>,
    gone: usize,
    /// All that was written has been flushed, too.
    flushed: bool,
}

impl Going {
    fn left(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Takes what there is, if all before has gone.
    fn refill(&mut self, from: &mut Vec<u8>, secret: &mut bool) {
        if self.gone < self.bytes.len() {
            return;
        }
        if *secret {
            self.bytes.zeroize();
            *secret = !from.is_empty();
        }
        self.bytes.clear();
        self.bytes.shrink_to(READ);
        self.gone = 0;
        std::mem::swap(&mut self.bytes, from);
    }

    /// Writes some of it, or sees to it that what was written goes (`None`). Given up, it can be begun once more.
    async fn push(&self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<Option<usize>> {
        match self.left() {
            [] => writer.flush().await.map(|()| None),
            left => writer.write(left).await.map(Some),
        }
    }
}

impl Driver {
    /// Until it ends; why.
    async fn run<S: AsyncRead + AsyncWrite>(
        &mut self,
        stream: S,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) -> String {
        let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
        let mut buffer = vec![0; READ];
        // What comes is read while this goes, or both ends would wait.
        let mut going = Going { flushed: true, ..Going::default() };
        let mut unused = false;
        let why = loop {
            going.refill(&mut self.broker.output.bytes, &mut self.tables.secret);
            let backlog = going.left().len() + self.broker.output.bytes.len();
            // What was asked for before still goes out.
            if unused && backlog == 0 && going.flushed {
                break "nobody uses it any more".to_owned();
            }
            let listens = self.ready.is_none() && !unused && backlog < BACKLOG;
            tokio::select! {
                written = going.push(&mut writer), if !going.left().is_empty() || !going.flushed => match written {
                    Ok(None) => going.flushed = true,
                    Ok(Some(0)) => break "the host takes nothing any more".to_owned(),
                    Ok(Some(count)) => (going.gone, going.flushed) = (going.gone + count, false),
                    Err(error) => break error.to_string(),
                },
                read = reader.read(&mut buffer), if backlog < UNREAD => match read {
                    Ok(0) => break "the host closed it".to_owned(),
                    Ok(count) => self.broker.receive(&buffer[..count]),
                    Err(error) => break error.to_string(),
                },
                command = commands.recv(), if listens => match command {
                    Some(command) => self.tables.command(&mut self.broker.output, command),
                    None => unused = true,
                },
            }
            // Whatever else was asked for goes out in the same write.
            while self.ready.is_none()
                && self.broker.output.bytes.len() < BACKLOG
                && let Ok(command) = commands.try_recv()
            {
                self.tables.command(&mut self.broker.output, command);
            }
            if let Err(fault) = self.events() {
                break fault;
            }
        };
        let _: io::Result<()> = writer.shutdown().await;
        why
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
