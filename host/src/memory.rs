//! The memory that the host uses for clients: one budget, shared by all accounts.
//!
//! A [`Meter`] counts the bytes of one connection: unprocessed input, waiting calls, and unread answers. Meters belong
//! to an [`Account`]: the identity that has logged in, or else the address. While less than half of the budget is used,
//! an account may have a quarter of it; beyond that, as much as each account that uses more than a little. An account
//! over its share waits, or is refused, so that no account makes the host run out of memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// The minimum for each account, even if others use the whole budget: enough for a request and its answer. In bytes.
pub(crate) const FLOOR: usize = 32 << 10;
/// An account below this is not limited by its share, in bytes.
const LITTLE: usize = 256 << 10;

/// The owner of an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccountKey {
    /// The network that a connection without a login comes from.
    Source(IpAddr),
    /// The identity that has logged in.
    Identity(String),
}

impl std::fmt::Display for AccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(address) => write!(f, "{address}"),
            Self::Identity(name) => f.write_str(name),
        }
    }
}

/// The memory of the whole host for clients.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
    /// The number of accounts that use more than [`LITTLE`].
    heavy: AtomicIsize,
    accounts: Mutex<HashMap<AccountKey, Weak<Account>>>,
}

impl Budget {
    /// Creates a budget of this many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let (used, heavy) = (AtomicUsize::new(0), AtomicIsize::new(0));
        Arc::new(Self { limit: AtomicUsize::new(limit), used, heavy, accounts: Mutex::default() })
    }

    /// Changes its size.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the account of an identity or a source. There is one for each key while anything holds it.
    #[must_use]
    pub fn account(self: &Arc<Self>, key: AccountKey) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&key).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(Account {
            key: key.clone(),
            budget: Arc::clone(self),
            used: AtomicUsize::new(0),
            held: Default::default(),
            heavy: AtomicBool::new(false),
        });
        accounts.insert(key, Arc::downgrade(&account));
        account
    }

    /// The ten largest accounts, with their bytes.
    #[must_use]
    pub fn largest(&self) -> Vec<(AccountKey, usize)> {
        let live: Vec<Arc<Account>> = self.accounts.lock().values().filter_map(Weak::upgrade).collect();
        let mut used: Vec<(AccountKey, usize)> =
            live.iter().map(|account| (account.key.clone(), account.used.load(Ordering::Relaxed))).collect();
        used.sort_unstable_by_key(|(_, used)| std::cmp::Reverse(*used));
        used.truncate(10);
        used
    }
}

/// The memory of one identity, or of one source without a login.
#[derive(Debug)]
pub struct Account {
    key: AccountKey,
    budget: Arc<Budget>,
    used: AtomicUsize,
    /// The number of items of each kind that its connections hold.
    held: [AtomicUsize; Held::ALL.len()],
    heavy: AtomicBool,
}

impl Account {
    fn add(&self, bytes: usize) {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > LITTLE && !self.heavy.swap(true, Ordering::Relaxed) {
            self.budget.heavy.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sub(&self, bytes: usize) {
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        let used = self.used.fetch_sub(bytes, Ordering::Relaxed).wrapping_sub(bytes);
        if used <= LITTLE && self.heavy.swap(false, Ordering::Relaxed) {
            self.budget.heavy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether this many more bytes fit into its share.
    fn admits(&self, bytes: usize) -> bool {
        let limit = self.budget.limit();
        let all = self.budget.used().saturating_add(bytes);
        let own = self.used.load(Ordering::Relaxed).saturating_add(bytes);
        if own <= FLOOR {
            return true;
        }
        if all > limit {
            return false;
        }
        // The counter may be negative for a moment, if an account crosses the threshold downward just as it crosses it
        // upward.
        let heavy = usize::try_from(self.budget.heavy.load(Ordering::Relaxed)).unwrap_or(0);
        let share = if all <= limit / 2 { limit / 4 } else { limit / (heavy + 1) };
        own <= share.max(LITTLE)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut accounts = self.budget.accounts.lock();
        // A new account with the same key may have been created just after the last reference to this one was dropped.
        if accounts.get(&self.key).is_some_and(|account| account.strong_count() == 0) {
            accounts.remove(&self.key);
        }
        if self.heavy.load(Ordering::Relaxed) {
            self.budget.heavy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The kind of a connection's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Answers of services that the connection's thread has not processed yet.
    Mail = 0,
    /// Written answers that the client has not read.
    Output = 1,
    /// Unprocessed input; calls that wait for room.
    Input = 2,
    /// Calls that wait in services' gates.
    Gate = 3,
}

/// Items that a connection holds, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Attachments.
    Attachments = 0,
    /// Objects of services that its client holds.
    Objects = 1,
    /// Calls by services that its client has not answered.
    Unanswered = 2,
}

impl Held {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Attachments, Self::Objects, Self::Unanswered];
}

/// A queue that has paused a connection, and continues when it is notified.
pub trait Resume: Send + Sync {
    /// Called when the connection has room again.
    fn resume(&self, connection: u32);
}

/// Counts the bytes of one connection. Dropping it releases them.
pub struct Meter {
    account: Mutex<Arc<Account>>,
    kept: [AtomicUsize; 4],
    /// The number of items of each kind that it holds.
    held: [AtomicUsize; Held::ALL.len()],
    /// Calls are not started while the client has more unread bytes of answers than this.
    unread: usize,
    /// The queues that wait until the client has read some.
    paused: Mutex<Vec<(Weak<dyn Resume>, u32)>>,
    closed: AtomicBool,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meter({} bytes)", self.total())
    }
}

impl Default for Meter {
    /// A meter without limits or owner, for uses other than a client's connection.
    fn default() -> Self {
        Self::new(Budget::new(usize::MAX).account(AccountKey::Identity(String::new())), usize::MAX)
    }
}

impl Meter {
    /// Creates the meter of a connection. Its calls are not started while more than `unread` bytes of answers wait for
    /// it.
    #[must_use]
    pub fn new(account: Arc<Account>, unread: usize) -> Self {
        Self {
            account: Mutex::new(account),
            kept: Default::default(),
            held: Default::default(),
            unread,
            paused: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The account, as a number. It is the same for all connections of an account.
    #[must_use]
    pub fn owner(&self) -> usize {
        Arc::as_ptr(&*self.account.lock()) as usize
    }

    /// Moves the connection to the account of this identity, after a login.
    pub fn log_in(&self, identity: &str) {
        let mut now = self.account.lock();
        let account = now.budget.account(AccountKey::Identity(identity.to_owned()));
        let total = self.total();
        account.add(total);
        now.sub(total);
        for kind in Held::ALL.map(|kind| kind as usize) {
            let (before, after, own) = (&now.held[kind], &account.held[kind], &self.held[kind]);
            let count = own.load(Ordering::Relaxed);
            after.fetch_add(count, Ordering::Relaxed);
            before.fetch_sub(count, Ordering::Relaxed);
        }
        *now = account;
    }

    /// Sets the number of items of a kind that the connection holds.
    pub fn hold(&self, kind: Held, count: usize) {
        let account = self.account.lock();
        let before = self.held[kind as usize].swap(count, Ordering::Relaxed);
        let all = &account.held[kind as usize];
        if count >= before {
            all.fetch_add(count - before, Ordering::Relaxed);
        } else {
            all.fetch_sub(before - count, Ordering::Relaxed);
        }
    }

    /// Sets all numbers of items to zero.
    pub fn hold_nothing(&self) {
        Held::ALL.into_iter().for_each(|kind| self.hold(kind, 0));
    }

    /// The number of items of a kind that this connection may hold, if all connections of its identity may hold
    /// `together`.
    #[must_use]
    pub fn may_hold(&self, kind: Held, together: usize) -> usize {
        let all = self.account.lock().held[kind as usize].load(Ordering::Relaxed);
        self.held[kind as usize].load(Ordering::Relaxed) + together.saturating_sub(all)
    }

    fn total(&self) -> usize {
        self.kept.iter().map(|kept| kept.load(Ordering::Relaxed)).sum()
    }

    /// The unread bytes of answers.
    #[must_use]
    pub fn untaken(&self) -> usize {
        self.kept[Kept::Mail as usize].load(Ordering::Relaxed)
            + self.kept[Kept::Output as usize].load(Ordering::Relaxed)
    }

    /// Adds bytes.
    pub fn add(&self, kept: Kept, bytes: usize) {
        let account = self.account.lock();
        self.kept[kept as usize].fetch_add(bytes, Ordering::Relaxed);
        account.add(bytes);
    }

    /// Removes bytes.
    pub fn sub(&self, kept: Kept, bytes: usize) {
        {
            let account = self.account.lock();
            self.kept[kept as usize].fetch_sub(bytes, Ordering::Relaxed);
            account.sub(bytes);
        }
        if matches!(kept, Kept::Mail | Kept::Output) {
            self.wake();
        }
    }

    /// Sets the number of bytes.
    pub fn set(&self, kept: Kept, bytes: usize) {
        let before = {
            let account = self.account.lock();
            let before = self.kept[kept as usize].swap(bytes, Ordering::Relaxed);
            match bytes.checked_sub(before) {
                Some(0) => return,
                Some(more) => account.add(more),
                None => account.sub(before - bytes),
            }
            before
        };
        if bytes < before && matches!(kept, Kept::Mail | Kept::Output) {
            self.wake();
        }
    }

    /// Whether this many more bytes fit into its share.
    #[must_use]
    pub fn admits(&self, bytes: usize) -> bool {
        self.account.lock().admits(bytes)
    }

    /// Whether its calls must wait because it has too many unread bytes. If so, `queue` is notified when they may
    /// continue.
    #[must_use]
    pub fn pause(&self, queue: &Weak<dyn Resume>, connection: u32) -> bool {
        if !self.is_over() {
            return false;
        }
        let mut paused = self.paused.lock();
        // The client may have read meanwhile. Whoever removes bytes checks this list afterwards.
        if !self.is_over() {
            return false;
        }
        paused.push((Weak::clone(queue), connection));
        true
    }

    fn is_over(&self) -> bool {
        !self.closed.load(Ordering::SeqCst) && self.untaken() > self.unread
    }

    fn wake(&self) {
        if self.is_over() {
            return;
        }
        let paused = std::mem::take(&mut *self.paused.lock());
        for (queue, connection) in paused {
            if let Some(queue) = queue.upgrade() {
                queue.resume(connection);
            }
        }
    }

    /// Ends the connection: nothing waits for it any more, and only its calls in gates remain.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.set(Kept::Output, 0);
        self.set(Kept::Input, 0);
        self.wake();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.hold_nothing();
        let total = self.total();
        self.account.get_mut().sub(total);
    }
}

/// The memory that this process may use, in bytes: the lowest of the machine's memory, its cgroup's limit and its own
/// limit.
#[must_use]
pub fn available() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
    });
    let limit = |of| rustix::process::getrlimit(of).current.and_then(|most| most.try_into().ok());
    let (space, data) = (limit(rustix::process::Resource::As), limit(rustix::process::Resource::Data));
    // If nothing can be read, a small machine is assumed.
    [machine, space, data].into_iter().flatten().chain(cgroups()).min().unwrap_or(1 << 30)
}

/// The memory limits of this process's cgroups, in bytes.
fn cgroups() -> Vec<usize> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let folder = std::path::PathBuf::from(format!("{root}{path}"));
        let read =
            |folder: &std::path::Path| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<usize>().ok();
        limits.extend(folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(read));
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> AccountKey {
        AccountKey::Identity(name.to_owned())
    }

    #[test]
    fn one_identity_gets_a_quarter_and_many_get_equal_shares() {
        let budget = Budget::new(64 << 20);
        let one = Meter::new(budget.account(identity("alice")), usize::MAX);
        assert!(one.admits(16 << 20) && !one.admits((16 << 20) + 1));
        let others: Vec<Meter> =
            (0..7).map(|index| Meter::new(budget.account(identity(&index.to_string())), usize::MAX)).collect();
        others.iter().for_each(|other| other.add(Kept::Output, 5 << 20));
        // 35 MiB are used, by seven: an eighth each.
        assert!(one.admits(8 << 20) && !one.admits((8 << 20) + 1));
        assert!(others[0].admits(3 << 20) && !others[0].admits((3 << 20) + 1));
        others[0].add(Kept::Output, 28 << 20);
        assert!(one.admits(1 << 10) && !one.admits((1 << 20) + 1), "there is 1 MiB left");
        others[1].add(Kept::Output, 2 << 20);
        assert!(one.admits(FLOOR) && !one.admits(FLOOR + 1), "there is nothing left, but for who has next to nothing");
        drop(others);
        assert_eq!((budget.used(), budget.heavy.load(Ordering::Relaxed)), (0, 0));
        drop(one);
        assert!(budget.accounts.lock().is_empty());
    }

    #[test]
    fn a_connections_memory_moves_to_the_identity_that_logs_in() {
        let budget = Budget::new(64 << 20);
        let source = budget.account(AccountKey::Source(IpAddr::from([10, 0, 0, 1])));
        let meter = Meter::new(Arc::clone(&source), 10);
        meter.add(Kept::Input, 1000);
        let alice = budget.account(identity("alice"));
        meter.log_in("alice");
        let used = |account: &Account| account.used.load(Ordering::Relaxed);
        assert_eq!((used(&source), used(&alice), budget.used()), (0, 1000, 1000));
        meter.set(Kept::Input, 10);
        assert_eq!(used(&alice), 10);
        assert_eq!(budget.largest(), [(identity("alice"), 10), (AccountKey::Source(IpAddr::from([10, 0, 0, 1])), 0)]);
        drop(meter);
        assert_eq!(budget.used(), 0);
    }

    #[derive(Default)]
    struct Queue(Mutex<Vec<u32>>);

    impl Resume for Queue {
        fn resume(&self, connection: u32) {
            self.0.lock().push(connection);
        }
    }

    #[test]
    fn a_paused_connection_resumes_once_enough_is_released() {
        let meter = Meter::new(Budget::new(1 << 30).account(identity("alice")), 100);
        let queue = Arc::new(Queue::default());
        let waiting: Weak<dyn Resume> = Arc::downgrade(&(Arc::clone(&queue) as Arc<dyn Resume>));
        assert!(!meter.pause(&waiting, 5));
        meter.add(Kept::Mail, 60);
        meter.add(Kept::Output, 60);
        assert!(meter.pause(&waiting, 5));
        meter.set(Kept::Output, 50);
        assert!(queue.0.lock().is_empty());
        meter.sub(Kept::Mail, 60);
        assert_eq!(*queue.0.lock(), [5]);
        meter.add(Kept::Mail, 100);
        assert!(meter.pause(&waiting, 6));
        meter.add(Kept::Input, 70);
        meter.close();
        assert_eq!(*queue.0.lock(), [5, 6]);
        assert_eq!(meter.total(), 100, "what is in the mailbox is taken out by who closes it");
        assert!(!meter.pause(&waiting, 7), "nobody waits for one who has gone");
    }
}
