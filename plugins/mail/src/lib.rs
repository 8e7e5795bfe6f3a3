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

/// One identity's mailbox. What is in it is in the service's data.
struct Mailbox {
    name: String,
}

/// A letter, as it is kept and as it is answered.
#[derive(Debug, Clone, Serialize, Deserialize, Described)]
struct Letter {
    /// Its number.
    #[serde(default)]
    number: u64,
    /// The sender.
    from: String,
    /// To whom.
    to: String,
    /// What it is about.
    subject: String,
    /// What it says; lists leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
}

/// Nobody can be called that.
#[derive(Serialize, Fault)]
#[fault(class = "mail.NoSuchMailbox", message = "there is no mailbox {to:?}")]
struct NoSuchMailbox {
    /// Whom it was for.
    to: String,
}

/// There is no letter of this number.
#[derive(Serialize, Fault)]
#[fault(class = "mail.NoSuchLetter", message = "there is no letter {number}")]
struct NoSuchLetter {
    /// The number.
    number: u64,
}

/// Where a letter is kept. Numbers are written with leading zeros, so that the order of keys is theirs.
fn key(folder: &str, owner: &str, number: u64) -> String {
    format!("{folder}/{owner}/{number:020}")
}

/// A mailbox.
#[perspective]
impl Mailbox {
    /// Sends a letter; answers with its number.
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
            // Nobody is called that; and it would be a key of somebody else's.
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

    /// The latest letters, without their texts; ten, if no `count` is given.
    async fn inbox(me: Handle<Self>, context: Context<Mail>, count: Option<usize>) -> Result<Vec<Letter>> {
        let prefix = me.read(|mailbox| format!("in/{}/", mailbox.name))?;
        let latest = context.data().select(Select::prefix(prefix).reverse().limit(count.unwrap_or(10))).await?;
        let letters = latest.entries.iter().map(|entry| {
            let letter: Letter = entry.value()?;
            Ok(Letter { text: String::new(), ..letter })
        });
        letters.collect()
    }

    /// One letter.
    #[raises(NoSuchLetter)]
    async fn read(me: Handle<Self>, context: Context<Mail>, number: u64) -> Result<Letter> {
        let key = me.read(|mailbox| key("in", &mailbox.name, number))?;
        Ok(context.data().get(key).await?.ok_or(NoSuchLetter { number })?)
    }

    /// Throws a letter away.
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
