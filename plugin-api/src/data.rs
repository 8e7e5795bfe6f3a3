//! A service's own data, for what is too large for one state.
//!
//! An ordered key-value store that belongs to the service alone and outlives it. A write is durable when it returns. A
//! perspective's state is read and saved as a whole; of this data, only the requested entries.
//!
//! ```no_run
//! # use plugin_api::prelude::*;
//! # async fn send<S: Service>(context: &Context<S>) -> Result<()> {
//! // One transaction for two people's data: both entries are written, or neither.
//! let mut change = context.data().transaction().await?;
//! change.put("in/bob/0001", &"hello bob")?;
//! change.put("sent/alice/0001", &"hello bob")?;
//! change.commit().await?;
//!
//! let latest = context.data().select(Select::prefix("in/bob/").reverse().limit(10)).await?;
//! for entry in &latest.entries {
//!     let text: String = entry.value()?;
//! }
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedMutexGuard;

use crate::abi::frame;
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// The service's data, from [`Context::data`](crate::Context::data).
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Mail;
/// # #[service("mail", save = "never")]
/// # impl Service for Mail {
/// #     type Perspective = Box_;
/// # }
/// # #[derive(Default)]
/// # struct Box_;
/// #[perspective]
/// impl Box_ {
///     async fn send(_me: Handle<Self>, context: Context<Mail>, number: u32, text: String) -> Result<()> {
///         context.data().put(format!("letter/{number:06}"), &text).await
///     }
///
///     async fn first(_me: Handle<Self>, context: Context<Mail>, count: usize) -> Result<Vec<String>> {
///         let letters = context.data().select(Select::prefix("letter/").limit(count)).await?;
///         letters.entries.iter().map(|letter| letter.value()).collect()
///     }
/// }
///
/// let host = TestHost::<Mail>::start()?;
/// let alice = host.attach("alice")?;
/// alice.call::<()>("send", (2, "second"))?;
/// alice.call::<()>("send", (1, "first"))?;
/// assert_eq!(alice.call::<Vec<String>>("first", (1,))?, ["first"]);
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct Data {
    core: Weak<Core>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value, in Jelly.
    bytes: Vec<u8>,
}

impl Entry {
    /// Decodes the value.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T> {
        read(&self.bytes)
    }

    /// The key as text. Bytes that are not UTF-8 are replaced.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # async fn names<S: Service>(context: &Context<S>) -> Result<Vec<String>> {
    /// // A page of ten entries, and the next one.
    /// let page = Select::prefix("letter/").limit(10);
    /// let first = context.data().select(page.clone()).await?;
    /// let Some(last) = first.entries.last() else { return Ok(Vec::new()) };
    /// let second = context.data().select(page.after(&last.key)).await?;
    /// Ok(second.entries.iter().map(|letter| letter.name()).collect())
    /// # }
    /// ```
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }
}

/// The result of a selection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// Whether there are more entries.
    pub more: bool,
}

/// A selection of entries.
///
/// ```
/// # use plugin_api::prelude::*;
/// // The last ten entries whose keys begin with "letter/".
/// let latest = Select::prefix("letter/").reverse().limit(10);
/// // All entries from "a" up to, but not including, "b".
/// let range = Select::from("a").until("b");
/// assert_ne!(latest, range);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Select {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    /// Only entries that come after this one, in the order in which they are returned.
    after: Option<Vec<u8>>,
    limit: u64,
    reverse: bool,
}

impl Select {
    /// Selects all entries whose keys begin with this prefix.
    #[must_use]
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let from = prefix.as_ref().to_vec();
        // The first key after all those with the prefix: increments the last byte that is not 255.
        let mut to = from.clone();
        while to.last() == Some(&u8::MAX) {
            to.pop();
        }
        if let Some(last) = to.last_mut() {
            *last += 1;
        }
        Self { from, to: (!to.is_empty()).then_some(to), after: None, limit: 1000, reverse: false }
    }

    /// Selects all entries from this key on, including it.
    #[must_use]
    pub fn from(key: impl AsRef<[u8]>) -> Self {
        Self { from: key.as_ref().to_vec(), to: None, after: None, limit: 1000, reverse: false }
    }

    /// Selects only entries before this key.
    #[must_use]
    pub fn until(mut self, key: impl AsRef<[u8]>) -> Self {
        // A prefix stays one.
        let key = key.as_ref().to_vec();
        self.to = Some(self.to.map_or(key.clone(), |to| to.min(key)));
        self
    }

    /// Selects only entries that come after this key: to continue after the last entry of an earlier result, in either order.
    #[must_use]
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.after = Some(key.as_ref().to_vec());
        self
    }

    /// Selects at most this many entries (1,000 by default). Whatever this limit, a result has one entry or at most 4 MiB, unless
    /// the operator has set another size (`data.answer` in `[limits]`).
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit as u64;
        self
    }

    /// The same entries by their bounds alone.
    fn bounded(mut self) -> Self {
        match self.after.take() {
            Some(after) if self.reverse => self.to = Some(self.to.map_or(after.clone(), |to| to.min(after))),
            Some(after) => self.from = self.from.max([after, vec![0]].concat()),
            None => {}
        }
        self
    }

    /// Reverses the order: the last entry comes first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }
}

impl Data {
    pub(crate) fn new(core: &Rc<Core>) -> Self {
        Self { core: Rc::downgrade(core) }
    }

    /// The data of a service that has ended: every access fails.
    pub(crate) fn none() -> Self {
        Self { core: Weak::new() }
    }

    fn core(&self) -> Result<Rc<Core>> {
        let ended = || Fault::new("twisted.spread.pb.DeadReferenceError", "the service has ended");
        self.core.upgrade().ok_or_else(ended)
    }

    /// Reads the value of a key. Returns `None` if the key does not exist.
    ///
    /// # Errors
    /// If the store cannot be read, or the value has another type.
    pub async fn get<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let key = key.as_ref();
        let found = self.select(Select::from(key).limit(1)).await?;
        found.entries.first().filter(|entry| entry.key == key).map(Entry::value).transpose()
    }

    /// Reads the selected entries, as they are committed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn select(&self, select: Select) -> Result<Selected> {
        Ok(fetch(&self.core()?, &select).await?.0)
    }

    /// Sets the value of a key. The change is durable when this returns.
    ///
    /// # Errors
    /// If the entry is too large, or cannot be written.
    pub async fn put<T: Serialize + ?Sized>(&self, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
        let mut change = self.transaction().await?;
        change.put(key, value)?;
        change.commit().await
    }

    /// Removes a key. The change is durable when this returns.
    ///
    /// # Errors
    /// If the change cannot be written.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # async fn forget<S: Service>(context: &Context<S>) -> Result<()> {
    /// context.data().remove("letter/000001").await?;
    /// // Both changes, or neither.
    /// let mut change = context.data().transaction().await?;
    /// change.remove("letter/000002")?;
    /// change.put("archive/000002", &"good day")?;
    /// change.commit().await?;
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<()> {
        let mut change = self.transaction().await?;
        change.remove(key)?;
        change.commit().await
    }

    /// Begins a transaction: changes of several keys that are applied as a whole or not at all. A service has one
    /// transaction at a time. The next one waits until this one is committed or dropped, so what this one reads stays
    /// valid until then. Do not wait for a client while you hold one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn transaction(&self) -> Result<Transaction> {
        let core = self.core()?;
        let turn = Arc::clone(&core.data_turn).lock_owned().await;
        let (_, version) = fetch(&core, &Select::from("").limit(0)).await?;
        Ok(Transaction { core, _turn: turn, base: version, writes: BTreeMap::new(), size: 0 })
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Data")
    }
}

/// A change of several keys, from [`Data::transaction`]. If it is dropped before [`commit`](Transaction::commit),
/// nothing is changed.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Mail;
/// # #[service("mail", save = "never")]
/// # impl Service for Mail {
/// #     type Perspective = Box_;
/// # }
/// # #[derive(Default)]
/// # struct Box_;
/// #[perspective]
/// impl Box_ {
///     /// Moves an amount: both accounts change, or none.
///     async fn transfer(_me: Handle<Self>, context: Context<Mail>, amount: u64) -> Result<u64> {
///         let mut change = context.data().transaction().await?;
///         let from: u64 = change.get("from").await?.unwrap_or(100);
///         let to: u64 = change.get("to").await?.unwrap_or(0);
///         let left = from.checked_sub(amount).ok_or_else(|| Fault::value("there is not so much"))?;
///         change.put("from", &left)?;
///         change.put("to", &(to + amount))?;
///         change.commit().await?;
///         Ok(left)
///     }
/// }
///
/// let host = TestHost::<Mail>::start()?;
/// let alice = host.attach("alice")?;
/// assert_eq!(alice.call::<u64>("transfer", (30,))?, 70);
/// assert_eq!(alice.call::<u64>("transfer", (99,)).unwrap_err().class(), "ValueError");
/// assert_eq!(alice.call::<u64>("transfer", (70,))?, 0);
/// # Ok::<(), Fault>(())
/// ```
pub struct Transaction {
    core: Rc<Core>,
    _turn: OwnedMutexGuard<()>,
    base: u64,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    size: usize,
}

impl Transaction {
    /// Reads the value of a key, including the writes of this transaction. Returns `None` if the key does not exist.
    ///
    /// # Errors
    /// If the store cannot be read, or the value has another type.
    pub async fn get<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let key = key.as_ref();
        if let Some(written) = self.writes.get(key) {
            return written.as_deref().map(read).transpose();
        }
        let (found, _) = fetch(&self.core, &Select::from(key).limit(1)).await?;
        found.entries.first().filter(|entry| entry.key == key).map(Entry::value).transpose()
    }

    /// Reads the selected entries, including the writes of this transaction.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn select(&self, select: Select) -> Result<Selected> {
        let select = select.bounded();
        let within =
            |key: &[u8]| key >= select.from.as_slice() && select.to.as_ref().is_none_or(|to| key < to.as_slice());
        let own: Vec<_> = self.writes.iter().filter(|(key, _)| within(key)).collect();
        // More than the limit, because this transaction may have removed some.
        let asked = Select { limit: select.limit.saturating_add(own.len() as u64), ..select.clone() };
        let (found, _) = fetch(&self.core, &asked).await?;
        // The store's entries after the last one returned are not known.
        let known_to = if found.more { found.entries.last().map(|entry| entry.key.clone()) } else { None };
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> =
            found.entries.into_iter().map(|entry| (entry.key, entry.bytes)).collect();
        for (key, value) in own {
            let known = known_to.as_ref().is_none_or(|last| if select.reverse { key >= last } else { key <= last });
            match value {
                Some(value) if known => drop(merged.insert(key.clone(), value.clone())),
                Some(_) => {}
                None => drop(merged.remove(key)),
            }
        }
        let mut entries: Vec<Entry> = merged.into_iter().map(|(key, bytes)| Entry { key, bytes }).collect();
        if select.reverse {
            entries.reverse();
        }
        let limit = usize::try_from(select.limit).unwrap_or(usize::MAX);
        let more = found.more || entries.len() > limit;
        entries.truncate(limit);
        Ok(Selected { entries, more })
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// If the key is empty, or the key, the value or the whole transaction is too large. Unless the operator has set other limits (`data.*`
    /// in `[limits]`), a key has at most 1 KiB, a value 1 MiB, and a whole transaction 16 MiB.
    pub fn put<T: Serialize + ?Sized>(&mut self, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
        let bytes = jelly::to_vec(value)
            .map_err(|error| Fault::new("RuntimeError", format!("the value cannot be written: {error}")))?;
        self.write(key.as_ref(), Some(bytes))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// If the key is empty, or the transaction has become too large.
    pub fn remove(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(key.as_ref(), None)
    }

    fn write(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        let (size, limits) = (value.as_ref().map_or(0, Vec::len), self.core.limits.get());
        // What is there can be removed, whatever the limit has become.
        if key.is_empty() || key.len() > limits.key && value.is_some() {
            let most = limits.key;
            return Err(Fault::value(format!("a key has 1 to {most} bytes; this one has {}", key.len())));
        }
        if size > limits.value {
            return Err(Fault::value(format!("a value has {} bytes at most; this one has {size}", limits.value)));
        }
        // A key that is written twice counts once.
        let before = self.writes.get(key).map_or(0, |value| key.len() + value.as_ref().map_or(0, Vec::len));
        let after = self.size - before + key.len() + size;
        if after > limits.change {
            return Err(Fault::value(format!("a change has {} bytes at most", limits.change)));
        }
        self.size = after;
        self.writes.insert(key.to_vec(), value);
        Ok(())
    }

    /// Applies all changes. They are durable when this returns.
    ///
    /// # Errors
    /// If the changes cannot be written, as in `start` and in code that was replaced. Then none of them is applied.
    pub async fn commit(self) -> Result<()> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(self.size + 16 * self.writes.len());
        for (key, value) in &self.writes {
            frame::put_entry(&mut entries, key, value.as_deref());
        }
        self.core.write_data(self.base, &entries).await.map(drop)
    }
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("keys", &self.writes.len()).finish_non_exhaustive()
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    jelly::from_scanned(bytes)
        .map_err(|error| Fault::new("RuntimeError", format!("the value does not fit this version: {error}")))
}

async fn fetch(core: &Rc<Core>, select: &Select) -> Result<(Selected, u64)> {
    let select = select.clone().bounded();
    let reply = core.data(&select.from, select.to.as_deref(), select.limit, select.reverse).await?;
    let entries = frame::entries(&reply.bytes)
        .map(|(key, value)| Entry { key: key.to_vec(), bytes: value.unwrap_or_default().to_vec() })
        .collect();
    Ok((Selected { entries, more: reply.some }, reply.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Page by page, every entry comes once, whatever the order and the size of a page.
    #[test]
    fn pages_follow_each_other_in_both_orders() {
        let keys: Vec<&[u8]> = vec![b"a", b"a/", b"a/1", b"a/1\0", b"a/2", b"a/\xff", b"a0", b"b"];
        let page = |select: &Select| {
            let select = select.clone().bounded();
            let within =
                |key: &&[u8]| *key >= &*select.from && select.to.as_ref().is_none_or(|to| *key < to.as_slice());
            let mut found: Vec<&[u8]> = keys.iter().copied().filter(within).collect();
            if select.reverse {
                found.reverse();
            }
            found.truncate(usize::try_from(select.limit).unwrap());
            found
        };
        for (select, first, last) in [
            (Select::prefix("a/"), 1, 6),
            (Select::from("a/1"), 2, 8),
            (Select::from("a").until("a/2"), 0, 4),
            (Select::prefix(""), 0, 8),
            (Select::prefix("a/").until("a/2"), 1, 4),
            (Select::prefix("a/").until("z"), 1, 6),
            (Select::from("a").until("b").until("a0"), 0, 6),
        ] {
            for (limit, reverse) in (1..4).flat_map(|limit| [(limit, false), (limit, true)]) {
                let mut select = select.clone().limit(limit);
                let mut wanted = keys[first..last].to_vec();
                if reverse {
                    select = select.reverse();
                    wanted.reverse();
                }
                let mut found: Vec<&[u8]> = Vec::new();
                loop {
                    let next = page(&found.last().map_or(select.clone(), |last| select.clone().after(last)));
                    if next.is_empty() {
                        break;
                    }
                    found.extend(next);
                }
                assert_eq!(found, wanted, "{select:?}");
            }
        }
    }
}
