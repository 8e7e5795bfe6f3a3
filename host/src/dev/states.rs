//! Tries saved states on a library before it serves, to find those that it cannot read.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use plugin_api::manifest::Manifest;

use crate::loader::gate::Outlet;
use crate::loader::generation::{Generation, Source};
use crate::loader::private::PrivateFolder;

/// How long reading one state may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the library may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// A library that is opened only to try states; its service is not created.
#[derive(Debug)]
pub struct Trial {
    generation: Generation,
    heard: Receiver<Vec<u8>>,
    service: String,
}

struct Words(Mutex<Sender<Vec<u8>>>);

impl Outlet for Words {
    fn frames(&self, frames: &[u8]) {
        // The receiver may no longer be interested.
        let _ = self.0.lock().send(frames.to_vec());
    }

    fn log(&self, _: u8, _: &str, _: &str) {}
}

impl Trial {
    /// Opens a library that was vetted.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(file: &Path, private: &PrivateFolder) -> Result<Self, String> {
        let (sender, heard) = channel();
        let outlet = Arc::new(Words(Mutex::new(sender)));
        let copy = private.copy(file).map_err(|fault| fault.to_string())?;
        let generation = Generation::start(Source::Copy(copy), outlet).map_err(|error| error.to_string())?;
        let mut trial = Self { generation, heard, service: String::new() };
        trial.service = trial.wait(|frame| match frame {
            ToHost::Manifest { manifest } => {
                let read = jelly::from_slice::<Manifest>(manifest).map_err(|error| error.to_string());
                Some(read.map(|manifest| manifest.service))
            }
            _ => None,
        })?;
        Ok(trial)
    }

    /// The name of the service in it.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Reads the state of a perspective, or of the service itself if the name is empty. Returns the reason if it cannot be read.
    ///
    /// # Errors
    /// If the library does not answer.
    pub fn read(&self, perspective: &str, state: &[u8]) -> Result<Option<String>, String> {
        self.generation.send(&ToLibrary::Try { perspective, state });
        self.wait(|frame| match frame {
            ToHost::Tried { message } => Some(Ok(message.map(|message| String::from_utf8_lossy(message).into_owned()))),
            _ => None,
        })
    }

    fn wait<R>(&self, mut of: impl FnMut(ToHost<'_>) -> Option<Result<R, String>>) -> Result<R, String> {
        loop {
            let frames = self
                .heard
                .recv_timeout(PATIENCE)
                .map_err(|_| format!("reading it takes longer than {} seconds", PATIENCE.as_secs()))?;
            let mut rest = frames.as_slice();
            while let Some(frame) = ToHost::read(&mut rest) {
                match frame {
                    ToHost::Refused { message } => return Err(message.to_owned()),
                    ToHost::Stopped {} => return Err("it ended unexpectedly".to_owned()),
                    frame => {
                        if let Some(found) = of(frame) {
                            return found;
                        }
                    }
                }
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.generation.send_last(&ToLibrary::Stop {});
        let stopped = loop {
            // Reading the last state may never return.
            let Ok(frames) = self.heard.recv_timeout(ENDING) else { break false };
            let mut rest = frames.as_slice();
            if std::iter::from_fn(|| ToHost::read(&mut rest)).any(|frame| matches!(frame, ToHost::Stopped {})) {
                break true;
            }
        };
        let _ = if stopped { self.generation.join() } else { self.generation.condemn() };
    }
}
