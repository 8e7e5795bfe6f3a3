//! Local objects that the other side has copies of.

use std::sync::Arc;

use jelly::RefKind;
use jelly::types::{Name, reference};
use serde::{Serialize, Serializer};

use super::calling::{check, plain_words};
use super::connection::Client;
use super::error::Error;
use super::link::{Command, Local, LocalCell, Writing};
use super::objects::{Nothing, number};

/// A local object of which the other side keeps a copy. The copy follows the changes that are announced.
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
    /// Returns an error if the state cannot be written.
    pub fn cacheable<T: Serialize>(&self, class: &str, state: &T) -> Result<Cacheable, Error> {
        let (link, number, state) = (self.link.clone(), number(), state_of(state)?);
        // It is dropped when no local handle is left and the other side has given back its copy.
        link.tell(Command::Register { number, object: Arc::new(Nothing) });
        link.tell(Command::Change { number, state, told: None });
        Ok(Cacheable { class: class.to_owned(), local: Local { cell: Arc::new(LocalCell { link, number }) } })
    }
}

impl Cacheable {
    /// Sets the state, and announces the change to the other side's copy by calling its `method(*arguments)`. The announcement
    /// keeps its order with the calls that send the object.
    ///
    /// # Errors
    /// Returns an error if the state or the arguments cannot be written, or if the connection is lost.
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

/// Encodes a state. It must contain no objects, and nothing larger than a peer reads.
fn state_of<T: Serialize>(state: &T) -> Result<Vec<u8>, Error> {
    let state = jelly::to_vec(state)?;
    check(&state, &[])?;
    Ok(state)
}

impl Serialize for Cacheable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Writing::admits(&self.local.cell.link.flow, RefKind::Cache, self.local.cell.number)?;
        // The state is inserted when the message is sent: the one that is current then.
        serializer.serialize_newtype_struct(reference::CACHE, &(Name(&self.class), self.local.cell.number, ()))
    }
}
