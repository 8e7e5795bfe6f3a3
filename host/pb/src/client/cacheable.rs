//! Objects of ours that the other side has copies of.

use std::sync::Arc;

use jelly::RefKind;
use jelly::types::{Name, reference};
use serde::{Serialize, Serializer};

use super::calling::{check, plain_words};
use super::connection::Client;
use super::error::Error;
use super::link::{Command, Local, LocalCell, Writing};
use super::objects::{Nothing, number};

/// An object of ours that the other side keeps a copy of. The copy follows the changes that we announce.
///
/// ```no_run
/// # async fn run(client: pb::client::Client, race: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
/// #[derive(serde::Serialize)]
/// struct Boat {
///     knots: f64,
/// }
///
/// let boat = client.cacheable("race.Boat", &Boat { knots: 5.0 })?;
/// race.call("enter", &(&boat,)).await?;
/// // Sends the change to existing copies. New copies start with this state.
/// boat.change(&Boat { knots: 7.5 }, "speed", &(7.5,)).await?;
/// # Ok(()) }
/// ```
///
/// In Twisted: `twisted.spread.pb.Cacheable`; the service's copy is a `plugin_api::Followed`.
#[derive(Debug)]
pub struct Cacheable {
    class: String,
    local: Local,
}

impl Client {
    /// Makes a cacheable object with a type ("module.Class") and a state. The state contains no objects.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn cacheable<T: Serialize>(&self, class: &str, state: &T) -> Result<Cacheable, Error> {
        let (link, number, state) = (self.link.clone(), number(), state_of(state)?);
        // It is dropped when the other side has given back its copy, and nobody here has it.
        link.tell(Command::Register { number, object: Arc::new(Nothing) });
        link.tell(Command::Change { number, state, told: None });
        Ok(Cacheable { class: class.to_owned(), local: Local { cell: Arc::new(LocalCell { link, number }) } })
    }
}

impl Cacheable {
    /// Sets the state, and announces the change to the other side's copy by calling its `method(*arguments)`. This keeps its order with
    /// the calls that send the object.
    ///
    /// # Errors
    /// When state or arguments cannot be written; when the connection is lost.
    pub async fn change<T, A>(&self, state: &T, method: &str, arguments: &A) -> Result<(), Error>
    where
        T: Serialize,
        A: Serialize,
    {
        let link = &self.local.cell.link;
        let (state, words) = (state_of(state)?, plain_words(&link.flow, method, arguments)?);
        words.check()?;
        let bytes = link.flow.bytes(words.size() + state.len()).await?;
        let (number, told) = (self.local.cell.number, Some((words, bytes)));
        link.commands.send(Command::Change { number, state, told }).map_err(|_| link.flow.not_sent())
    }
}

/// A state as it is put in, which has no objects in it, and is not larger than others read.
fn state_of<T: Serialize>(state: &T) -> Result<Vec<u8>, Error> {
    let state = jelly::to_vec(state)?;
    check(&state, &[])?;
    Ok(state)
}

impl Serialize for Cacheable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Writing::admits(&self.local.cell.link.flow, RefKind::Cache, self.local.cell.number)?;
        // Its state of then is put in when it is sent.
        serializer.serialize_newtype_struct(reference::CACHE, &(Name(&self.class), self.local.cell.number, ()))
    }
}
