//! The host's side of the control socket.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

use super::perform::Failed;
use super::protocol::{Request, Response};

/// The longest line that is read.
const LINE: u64 = 64 << 10;

/// Listens on the socket; every request is answered by `answer`. Runs for as long as it is polled, on a `LocalSet`.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve<F>(path: &Path, answer: impl Fn(Request) -> F + 'static) -> io::Result<()>
where
    F: Future<Output = Result<serde_json::Value, Failed>> + 'static,
{
    // Who holds the home's lock owns the socket: what is there was left by a process that has ended.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let answer = Rc::new(answer);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Rc::clone(&answer);
                tokio::task::spawn_local(async move {
                    if let Err(error) = converse(stream, &*answer).await {
                        tracing::debug!(%error, "a control connection ended");
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

async fn converse<F>(mut stream: UnixStream, answer: &impl Fn(Request) -> F) -> io::Result<()>
where
    F: Future<Output = Result<serde_json::Value, Failed>>,
{
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        // It may hold a password.
        let mut line = Zeroizing::new(String::new());
        if (&mut reader).take(LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let response = if line.ends_with('\n') {
            match serde_json::from_str(&line) {
                Ok(request) => match answer(request).await {
                    Ok(done) => Response::Done(done),
                    Err(Failed { error, hint }) => Response::Failed { error, hint },
                },
                Err(error) => Response::Failed { error: format!("not a request: {error}"), hint: None },
            }
        } else {
            Response::Failed { error: format!("a line of more than {LINE} bytes"), hint: None }
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}
