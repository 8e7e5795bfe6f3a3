//! The client's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::failure::ControlFailure;
use super::place::Place;
use super::protocol::{Request, Response, VERSION};

/// The timeout for a message from the host, which may have to hash a password or stop a library.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No host runs in this home.
    #[error("no host runs in this home")]
    NoHost,
    /// The home belongs to another user.
    #[error("{home} belongs to {owner}: run this command as that user")]
    NotYours {
        /// The home.
        home: PathBuf,
        /// Its owner, as far as that can be determined.
        owner: String,
    },
    /// The host does not answer.
    #[error("the running host does not answer: {0}")]
    Io(#[from] io::Error),
    /// The host ended before it began the request.
    #[error("the host has ended; nothing was done")]
    NotBegun,
    /// The host ended before it answered.
    #[error("the host ended before it answered; check whether the command took effect before you try again")]
    Ended,
    /// The host's answer is not understood, because it has another version.
    #[error("the running host's answer cannot be parsed ({0}); is it another version?")]
    Answer(#[from] serde_json::Error),
}

fn connect(socket: &Path) -> Result<UnixStream, ControlError> {
    let connected = Place::of(socket).and_then(|place| UnixStream::connect(place.path()));
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            ControlError::NoHost
        }
        io::ErrorKind::PermissionDenied => {
            let home = socket.parent().unwrap_or(socket).to_owned();
            ControlError::NotYours { owner: owner(&home), home }
        }
        _ => error.into(),
    })
}

/// The owner of a home that cannot be entered: that of its folder, or of the nearest readable ancestor.
fn owner(home: &Path) -> String {
    let Some(about) = home.ancestors().find_map(|folder| std::fs::metadata(folder).ok()) else {
        return "another user".to_owned();
    };
    let uid = about.uid().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':'));
    let name = fields.find_map(|mut of| Some((of.next()?, of.nth(1)?)).filter(|(_, number)| *number == uid));
    name.map_or_else(|| format!("uid {uid}"), |(name, _)| name.to_owned())
}

/// Whether a host accepts connections at this socket.
#[must_use]
pub fn is_served(socket: &Path) -> bool {
    connect(socket).is_ok()
}

/// Sends a request to the running host. `progress` is called with the amount that is done and the total (0 if unknown).
///
/// # Errors
/// If no host runs, or it does not answer. The inner error is the host's refusal.
pub fn send(
    socket: &Path,
    request: &Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Result<serde_json::Value, ControlFailure>, ControlError> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The version comes first. The rest may contain a password.
    let body = Zeroizing::new(serde_json::to_string(request)?);
    let line = Zeroizing::new(format!("{{\"version\":{VERSION},{}\n", body.trim_start_matches('{')));
    let ended = |begun| if begun { ControlError::Ended } else { ControlError::NotBegun };
    let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
    stream.write_all(line.as_bytes()).map_err(|error| if gone(&error) { ended(false) } else { error.into() })?;
    let mut reader = BufReader::new(stream);
    // A host sends a message before it begins.
    let mut begun = false;
    loop {
        // The answer may contain a token.
        let mut answer = Zeroizing::new(String::new());
        match reader.read_line(&mut answer) {
            Ok(0) => return Err(ended(begun)),
            Err(error) if gone(&error) => return Err(ended(begun)),
            read => read?,
        };
        begun = true;
        match serde_json::from_str(&answer)? {
            Response::Progress { done, of } => progress(done, of),
            Response::Done(done) => return Ok(Ok(done)),
            Response::Failed { error, hint } => return Ok(Err(ControlFailure { error, hint })),
        }
    }
}
