//! The host's side of the control socket.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::failure::ControlFailure;
use super::place::Place;
use super::protocol::{Request, Response, VERSION};

/// The longest request line, in bytes.
const LINE: u64 = 8 << 20;

/// The channel for progress: the amount that is done, and the total.
pub type Progress = tokio::sync::mpsc::UnboundedSender<(u64, u64)>;

/// Listens on the socket. Must be called within a tokio runtime.
///
/// # Errors
/// If the socket cannot be created.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    // The owner of the home's lock owns the socket. An existing one was left by a process that has ended.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(Place::of(path)?.path())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The interval of messages to a waiting client that the host is still working.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(10);

/// Counts the requests that have begun and are not answered yet. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Rc<(Cell<usize>, Notify)>);

impl UnderWay {
    fn begins(&self) -> Begun {
        self.0.0.set(self.0.0.get() + 1);
        Begun(self.clone())
    }

    /// Waits until all requests that have begun are answered.
    pub async fn ended(&self) {
        while self.0.0.get() > 0 {
            self.0.1.notified().await;
        }
    }
}

struct Begun(UnderWay);

impl Drop for Begun {
    fn drop(&mut self) {
        let (count, ended) = &*self.0.0;
        count.set(count.get() - 1);
        ended.notify_one();
    }
}

/// Answers requests of this user and of root. `answer` receives the request and the user's number. It runs while it is
/// polled, on a `LocalSet`. Requests that have begun continue when it is no longer polled: see [`UnderWay::ended`].
pub async fn serve<F>(
    listener: UnixListener,
    under_way: UnderWay,
    answer: impl Fn(Request, u32, Progress) -> F + 'static,
) where
    F: Future<Output = Result<serde_json::Value, ControlFailure>> + 'static,
{
    let answer = Rc::new(answer);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (answer, under_way) = (Rc::clone(&answer), under_way.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = converse(stream, &under_way, &*answer).await {
                        tracing::debug!(%error, "a control connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection cannot be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Parses a request line.
fn read(line: &str) -> Result<Request, String> {
    let mut value: serde_json::Value = serde_json::from_str(line).map_err(|error| format!("not a request: {error}"))?;
    let version = value.as_object_mut().and_then(|request| request.remove("version"));
    match version.as_ref().and_then(serde_json::Value::as_u64) {
        Some(VERSION) => serde_json::from_value(value).map_err(|error| format!("not a request: {error}")),
        _ => Err(format!(
            "this host speaks version {VERSION} of the control protocol, and not {}",
            version.map_or_else(|| "an unnamed one".to_owned(), |version| version.to_string())
        )),
    }
}

async fn converse<F>(
    mut stream: UnixStream,
    under_way: &UnderWay,
    answer: &impl Fn(Request, u32, Progress) -> F,
) -> io::Result<()>
where
    F: Future<Output = Result<serde_json::Value, ControlFailure>>,
{
    // The socket's mode keeps others out. This check still does so if someone has changed the mode.
    let who = stream.peer_cred()?;
    if who.uid() != rustix::process::geteuid().as_raw() && who.uid() != 0 {
        tracing::warn!(uid = who.uid(), "another user was turned away from the control socket");
        return Ok(());
    }
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        // It may contain a password.
        let mut line = Zeroizing::new(String::new());
        if (&mut reader).take(LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let _begun = under_way.begins();
        let response = if line.ends_with('\n') {
            match read(&line) {
                Ok(request) => {
                    // A client that receives nothing before the host ends knows that its request was not begun.
                    write(&mut writer, &Response::Progress { done: 0, of: 0 }).await?;
                    let (progress, mut told) = tokio::sync::mpsc::unbounded_channel();
                    let mut answering = std::pin::pin!(answer(request, who.uid(), progress));
                    let (mut last, mut alive) = ((0, 0), tokio::time::interval(ALIVE));
                    alive.reset();
                    let answered = loop {
                        tokio::select! {
                            biased;
                            answered = &mut answering => break answered,
                            Some(now) = told.recv() => last = now,
                            // No more is done yet, but the host is still working.
                            _ = alive.tick() => {}
                        }
                        let (done, of) = last;
                        write(&mut writer, &Response::Progress { done, of }).await?;
                    };
                    match answered {
                        Ok(done) => Response::Done(done),
                        Err(ControlFailure { error, hint }) => Response::Failed { error, hint },
                    }
                }
                Err(error) => {
                    let hint = Some("is this command from another version than the host?".to_owned());
                    Response::Failed { error, hint }
                }
            }
        } else {
            Response::Failed {
                error: format!("a request of more than {LINE} bytes"),
                hint: Some("send a smaller request".to_owned()),
            }
        };
        write(&mut writer, &response).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

async fn write(writer: &mut (impl tokio::io::AsyncWrite + Unpin), response: &Response) -> io::Result<()> {
    // It may contain a token.
    let mut text = Zeroizing::new(serde_json::to_string(response)?);
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}
