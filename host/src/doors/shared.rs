//! A socket that several listeners share. The first bytes of a connection select its listener
//! ([`first`](super::first)); they are peeked at, not read.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Doors;
use super::first::{MOST, Verdict, whose, whose_passed_on};
use super::listening::Listening;
use super::port::Port;
use crate::config::ListenerSettings;
use crate::listener::sources::Place;
use crate::listener::{Entrance, behind_proxy, keep_alive, proxy_header};
use crate::login_gate::network;
use crate::memory::{AccountKey, Kept, Meter};

/// A client that has sent nothing for this long waits for the server to speak first.
const SILENCE: Duration = Duration::from_secs(2);
/// What is counted in the memory budget for an undecided connection, in bytes: all that may be peeked at.
const COST: usize = MOST;
/// How much is peeked at first, in bytes: enough for most ClientHellos.
const SOME: usize = 2 << 10;

/// A connection whose listener is not known yet. Its place is freed when this is dropped.
struct Undecided {
    port: Arc<Port>,
    place: Place,
    _meter: Arc<Meter>,
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.port.leave(self.place);
    }
}

impl Doors {
    /// Takes a connection that was accepted on a port.
    pub(super) fn come_to(self: &Arc<Self>, port: &Arc<Port>, client: OwnedFd, source: Option<SocketAddr>) {
        if source.is_some()
            && let Err(error) = keep_alive(&client, &self.limits.read())
        {
            // The client has already gone, which shows when the socket is read.
            tracing::debug!(%error, "TCP keepalive cannot be set for a client");
        }
        match source {
            Some(proxy) if port.has_header(proxy.ip()) => self.passed_on(port, client, proxy),
            _ => self.come_from(port, client, source),
        }
    }

    /// Takes a connection from a proxy. It begins with a PROXY header that names its source.
    fn passed_on(self: &Arc<Self>, port: &Arc<Port>, client: OwnedFd, proxy: SocketAddr) {
        let limits = *self.limits.read();
        // All clients of a proxy come from its address.
        let Some(place) = port.enter(proxy.ip(), true, true, &limits) else {
            return tracing::debug!(%proxy, "too many connections have not shown which listener they are for");
        };
        let account = self.around.memory.account(AccountKey::Source(network(proxy.ip())));
        let meter = Arc::new(Meter::new(account, usize::MAX));
        let undecided = Undecided { port: Arc::clone(port), place, _meter: Arc::clone(&meter) };
        if !meter.admits(COST) {
            return tracing::debug!(%proxy, "no memory for one more connection");
        }
        meter.add(Kept::Input, COST);
        let me = Arc::clone(self);
        self.spawn(async move {
            let header = async {
                let mut socket = TcpStream::from_std(client.into())?;
                let source = proxy_header(&mut socket).await?;
                io::Result::Ok((OwnedFd::from(socket.into_std()?), behind_proxy(proxy, source)))
            };
            let found = tokio::time::timeout(limits.greeting, header).await;
            let port = Arc::clone(&undecided.port);
            drop(undecided);
            match found {
                Ok(Ok((client, source))) => me.come_from(&port, client, Some(source)),
                Ok(Err(error)) => tracing::debug!(%proxy, %error, "a connection is closed"),
                Err(_) => tracing::debug!(%proxy, "a connection is closed: its PROXY header did not arrive in time"),
            }
        });
    }

    /// Takes a connection whose source is known.
    fn come_from(self: &Arc<Self>, port: &Arc<Port>, client: OwnedFd, source: Option<SocketAddr>) {
        if let [listening] = &port.listeners[..] {
            return self.come_by(listening, client, source);
        }
        let around = &self.around;
        let address = source.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |source| source.ip());
        let known = source.is_none() || around.gate.is_known(address);
        // A proxy may send a PROXY header first, for the host's own listeners, which trust it.
        let believed = source.is_some_and(|source| {
            let mut entrances = port.listeners.iter().filter_map(|one| self.entrance(one));
            entrances.any(|entrance| entrance.believes(source.ip()))
        });
        let of_services = |one: &Arc<Listening>| one.settings.is_proxy(source.map(|source| source.ip()));
        let proxy = believed || port.listeners.iter().any(of_services);
        let limits = *self.limits.read();
        let Some(place) = port.enter(address, known, proxy, &limits) else {
            return tracing::debug!(%address, "too many connections have not shown which listener they are for");
        };
        let meter = Arc::new(Meter::new(around.memory.account(AccountKey::Source(network(address))), usize::MAX));
        let undecided = Undecided { port: Arc::clone(port), place, _meter: Arc::clone(&meter) };
        if !meter.admits(COST) {
            return tracing::debug!(%address, "no memory for one more connection");
        }
        meter.add(Kept::Input, COST);
        let me = Arc::clone(self);
        self.spawn(async move {
            let listeners: Vec<&ListenerSettings> = undecided.port.listeners.iter().map(|one| &one.settings).collect();
            let own = |at: usize| undecided.port.listeners[at].of_host.is_some();
            let whose = |first: &[u8], silent: bool| match believed {
                true => whose_passed_on(&listeners, own, first, silent),
                false => whose(&listeners, first, silent),
            };
            let found = async { decide(Client::new(client, source.is_some())?, whose).await };
            let found = tokio::time::timeout(limits.greeting, found).await;
            let listening = match found {
                Ok(Ok((client, at))) => Some((client, Arc::clone(&undecided.port.listeners[at]))),
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "a connection is closed");
                    None
                }
                Err(_) => {
                    tracing::debug!(%address, "a connection is closed: its first bytes did not select a listener in time");
                    None
                }
            };
            drop(undecided);
            if let Some((client, listening)) = listening {
                me.come_by(&listening, client, source);
            }
        });
    }
}

impl Doors {
    /// Takes a connection whose listener is known.
    fn come_by(self: &Arc<Self>, listening: &Arc<Listening>, client: OwnedFd, source: Option<SocketAddr>) {
        if listening.of_host.is_none() {
            return self.come(listening, client, source);
        }
        if let (Some(entrance), Some(source)) = (self.entrance(listening), source) {
            entrance.come(client.into(), source);
        }
    }

    /// The way in to a listener that is one of the host's own.
    fn entrance(&self, listening: &Listening) -> Option<&Entrance> {
        self.entrances.get()?.get(listening.of_host?)
    }
}

/// A client's socket, which is only peeked at.
enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    fn new(client: OwnedFd, tcp: bool) -> io::Result<Self> {
        Ok(match tcp {
            true => Self::Tcp(TcpStream::from_std(client.into())?),
            false => Self::Unix(UnixStream::from_std(client.into())?),
        })
    }

    fn into_inner(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(socket) => socket.into_std()?.into(),
            Self::Unix(socket) => socket.into_std()?.into(),
        })
    }

    /// Waits until this many bytes have arrived. `false`: the client ended the stream before. The cost does not depend
    /// on how many bytes are queued.
    async fn arrived(&self, needed: usize) -> io::Result<bool> {
        loop {
            let ready = match self {
                Self::Tcp(socket) => socket.ready(Interest::READABLE).await?,
                Self::Unix(socket) => socket.ready(Interest::READABLE).await?,
            };
            if rustix::io::ioctl_fionread(self)? >= needed as u64 {
                return Ok(true);
            }
            // This state is permanent: waiting for more would loop without a pause.
            if ready.is_read_closed() || ready.is_error() {
                return Ok(false);
            }
            // Clears the readiness until more arrives.
            let not_yet = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = match self {
                Self::Tcp(socket) => socket.try_io(Interest::READABLE, not_yet),
                Self::Unix(socket) => socket.try_io(Interest::READABLE, not_yet),
            };
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Waits until the listener of a connection is known. Nothing is read from the socket.
async fn decide(client: Client, whose: impl Fn(&[u8], bool) -> Verdict) -> io::Result<(OwnedFd, usize)> {
    // It may be a password.
    let mut first = Zeroizing::new(Vec::new());
    let (mut needed, mut silent_at) = (1, Some(Instant::now() + SILENCE));
    loop {
        let arrived = async { client.arrived(needed).await };
        let silent = async {
            match silent_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (last, silent) = tokio::select! {
            more = arrived => (!more?, false),
            () = silent => (false, true),
        };
        // Silence is measured from the last bytes.
        silent_at = (!silent && !last).then(|| Instant::now() + SILENCE);
        // More may have arrived than was needed, or nothing at all.
        let there = usize::try_from(rustix::io::ioctl_fionread(&client)?).unwrap_or(MOST).min(MOST);
        if first.len() < there {
            // A buffer that grows would leave a copy behind.
            first = Zeroizing::new(vec![0; there.max(SOME)]);
        }
        let count = if there == 0 { 0 } else { peek(&client, &mut first)? };
        match whose(&first[..count], silent || last) {
            Verdict::More(_) if last => return Err(io::ErrorKind::UnexpectedEof.into()),
            Verdict::More(more) => needed = more.max(count + 1),
            Verdict::Is(at) => return Ok((client.into_inner()?, at)),
            Verdict::Nobody(answer) => {
                // The client may have gone.
                let _ = rustix::net::send(&client, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                return Err(io::Error::other("it matches no listener at this address"));
            }
        }
    }
}

/// Peeks at the bytes that have arrived.
fn peek(client: impl AsFd, first: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(client, first, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
}
