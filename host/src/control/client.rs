//! A command's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::perform::Failed;
use super::protocol::{Request, Response};

/// How long a host may take to answer: it may have a password to hash.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No host runs in this home.
    #[error("no host runs in this home")]
    NoHost,
    /// The host does not answer.
    #[error("the running host does not answer: {0}")]
    Io(#[from] io::Error),
    /// The host answers with something else than was to be expected: it is of another version.
    #[error("the running host's answer is not understood ({0}); is it of another version?")]
    Answer(#[from] serde_json::Error),
}

/// Asks the running host.
///
/// # Errors
/// When none runs or none answers; inside, what the host refused with.
pub fn send(socket: &Path, request: &Request) -> Result<Result<serde_json::Value, Failed>, ControlError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NoHost,
        _ => error.into(),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = Zeroizing::new(serde_json::to_string(request)?);
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(match serde_json::from_str(&answer)? {
        Response::Done(done) => Ok(done),
        Response::Failed { error, hint } => Err(Failed { error, hint }),
    })
}
