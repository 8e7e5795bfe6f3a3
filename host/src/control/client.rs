//! A command's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::failure::ControlFailure;
use super::protocol::{Request, Response, VERSION};

/// How long a host may say nothing: it may have a password to hash, or a library to stop.
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
    /// The host has ended meanwhile.
    #[error("the host has ended before it answered; look whether it was done, and try again")]
    Ended,
    /// The host answers with something else than was to be expected: it is of another version.
    #[error("the running host's answer is not understood ({0}); is it of another version?")]
    Answer(#[from] serde_json::Error),
}

/// Asks the running host. `progress` hears how much is done, of how much (0: not known).
///
/// # Errors
/// When none runs or none answers; inside, what the host refused with.
pub fn send(
    socket: &Path,
    request: &Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Result<serde_json::Value, ControlFailure>, ControlError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NoHost,
        _ => error.into(),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The version stands first; what follows may hold a password.
    let body = Zeroizing::new(serde_json::to_string(request)?);
    let line = Zeroizing::new(format!("{{\"version\":{VERSION},{}\n", body.trim_start_matches('{')));
    stream.write_all(line.as_bytes())?;
    let mut reader = BufReader::new(stream);
    loop {
        // A token may be in it.
        let mut answer = Zeroizing::new(String::new());
        if reader.read_line(&mut answer)? == 0 {
            return Err(ControlError::Ended);
        }
        match serde_json::from_str(&answer)? {
            Response::Progress { done, of } => progress(done, of),
            Response::Done(done) => return Ok(Ok(done)),
            Response::Failed { error, hint } => return Ok(Err(ControlFailure { error, hint })),
        }
    }
}
