//! Letters: the model for a service that keeps more than a state can hold.
//!
//! A letter is an entry of the service's own data ([`Context::data`]), not part of anybody's state: an inbox of a million
//! letters costs as much memory as an empty one. Sending writes the recipient's copy and the sender's in one change: both
//! are there, or neither is.

use plugin_api::prelude::*;
use plugin_api::{Described, Fault};

plugin_api::export!(Mail);

/// Letters between identities.
#[derive(Default)]
struct Mail;

/// Letters: send them, list them, read them.
#[service("mail", save = "never")]
impl Service for Mail {
    type Perspective = Mailbox;

    fn perspective(&self, name: &str) -> Result<Mailbox> {
        Ok(Mailbox { name: name.to_owned() })
    }
}

/// One identity's mailbox. Its letters are in the service's data.
struct Mailbox {
    name: String,
}

/// A letter, as stored and as returned.
#[derive(Debug, Clone, Serialize, Deserialize, Described)]
struct Letter {
    /// Its number.
    #[serde(default)]
    number: u64,
    /// The sender.
    from: String,
    /// The recipient.
    to: String,
    /// The subject.
    subject: String,
    /// The text; lists omit it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
}

/// The name cannot be a mailbox's.
#[derive(Serialize, Fault)]
#[fault(class = "mail.NoSuchMailbox", message = "there is no mailbox {to:?}")]
struct NoSuchMailbox {
    /// The recipient's name.
    to: String,
}

/// There is no letter of this number.
#[derive(Serialize, Fault)]
#[fault(class = "mail.NoSuchLetter", message = "there is no letter {number}")]
struct NoSuchLetter {
    /// The number.
    number: u64,
}

/// The key of a letter. Numbers have leading zeros, so that keys are in the order of the numbers.
fn key(folder: &str, owner: &str, number: u64) -> String {
    format!("{folder}/{owner}/{number:020}")
}

/// The latest letters whose keys begin with this.
async fn latest(context: &Context<Mail>, prefix: String, count: Option<usize>) -> Result<Vec<Letter>> {
    let latest = context.data().select(Select::prefix(prefix).reverse().limit(count.unwrap_or(10))).await?;
    let letters = latest.entries.iter().map(|entry| {
        let letter: Letter = entry.value()?;
        Ok(Letter { text: String::new(), ..letter })
    });
    letters.collect()
}

/// A mailbox.
#[perspective]
impl Mailbox {
    /// Sends a letter. Returns its number.
    #[raises(NoSuchMailbox)]
    async fn send(
        me: Handle<Self>,
        context: Context<Mail>,
        to: String,
        subject: String,
        text: Option<String>,
    ) -> Result<u64> {
        let from = me.read(|mailbox| mailbox.name.clone())?;
        if to.is_empty() || to.contains('/') {
            // Nobody has such a name, and it could lead to somebody else's key.
            return Err(NoSuchMailbox { to }.into());
        }
        let mut change = context.data().transaction().await?;
        let number: u64 = change.get("next").await?.unwrap_or(1);
        let letter = Letter { number, from: from.clone(), to: to.clone(), subject, text: text.unwrap_or_default() };
        change.put("next", &(number + 1))?;
        change.put(key("in", &to, number), &letter)?;
        change.put(key("sent", &from, number), &letter)?;
        change.commit().await?;
        Ok(number)
    }

    /// Returns the latest letters, without their texts; ten, if no `count` is given.
    async fn inbox(me: Handle<Self>, context: Context<Mail>, count: Option<usize>) -> Result<Vec<Letter>> {
        let prefix = me.read(|mailbox| format!("in/{}/", mailbox.name))?;
        latest(&context, prefix, count).await
    }

    /// Returns the latest letters that were sent from here, without their texts; ten, if no `count` is given.
    async fn sent(me: Handle<Self>, context: Context<Mail>, count: Option<usize>) -> Result<Vec<Letter>> {
        let prefix = me.read(|mailbox| format!("sent/{}/", mailbox.name))?;
        latest(&context, prefix, count).await
    }

    /// Returns one letter.
    #[raises(NoSuchLetter)]
    async fn read(me: Handle<Self>, context: Context<Mail>, number: u64) -> Result<Letter> {
        let key = me.read(|mailbox| key("in", &mailbox.name, number))?;
        Ok(context.data().get(key).await?.ok_or(NoSuchLetter { number })?)
    }

    /// Deletes a letter.
    #[raises(NoSuchLetter)]
    async fn remove(me: Handle<Self>, context: Context<Mail>, number: u64) -> Result<()> {
        let key = me.read(|mailbox| key("in", &mailbox.name, number))?;
        let mut change = context.data().transaction().await?;
        let found: Option<Letter> = change.get(&key).await?;
        found.ok_or(NoSuchLetter { number })?;
        change.remove(&key)?;
        change.commit().await
    }
}

#[cfg(test)]
mod tests;
