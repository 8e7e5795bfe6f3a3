//! SSH, by russh: who may log in, and which channels they get.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use plugin_api::{Authorizer, Client, Login, Refused, Stream};
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet, Preferred, Pty, SshId, compression};

use crate::console;
use crate::limits::Limits;
use crate::wire::Waiting;

/// After this many refusals, a client has to reconnect: OpenSSH's six (`MaxAuthTries`), and the first request of its client,
/// which proves nothing.
const TRIES: usize = 7;

/// The configuration of SSH, with this key of the host.
pub(crate) fn config(key: PrivateKey) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-credhost")),
        methods: methods(),
        // The host already makes every refusal take the same time.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: TRIES,
        keys: vec![key],
        // What a client sends is small: commands.
        window_size: 256 << 10,
        // Keepalives detect a client that has gone without notice.
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(60)),
        nodelay: true,
        preferred: Preferred { compression: Cow::Borrowed(&[compression::NONE]), ..Preferred::DEFAULT },
        ..Config::default()
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(config: Arc<Config>, authorizer: Authorizer, stream: Stream, limits: Limits) {
    let peer = stream.peer().address().to_owned();
    let (client, begun) = (stream.client(), HashSet::new());
    let door = Door { authorizer, channels: Arc::new(Waiting::new(client.clone(), limits)), client, begun };
    let ended = match russh::server::run_stream(config, stream, door).await {
        Ok(running) => running.await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(peer, %error, "a connection has ended");
    }
}

struct Door {
    authorizer: Authorizer,
    client: Client,
    /// How many bytes of commands wait in all channels. Each channel holds a reference to it.
    channels: Arc<Waiting>,
    /// Channels that already run a command or a shell.
    begun: HashSet<ChannelId>,
}

impl Door {
    /// Accepts the first command or shell of a channel, and refuses others.
    fn begin(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        if self.begun.insert(channel) { session.channel_success(channel) } else { session.channel_failure(channel) }
    }
}

/// The methods of authentication.
fn methods() -> MethodSet {
    MethodSet::from(&[MethodKind::PublicKey, MethodKind::Password][..])
}

fn answer(asked: Result<Login, Refused>) -> Auth {
    match asked {
        Ok(_) => Auth::Accept,
        // A refused client may try again: the host throttles it.
        Err(_) => Auth::Reject { proceed_with_methods: Some(methods()), partial_success: false },
    }
}

impl Handler for Door {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(answer(self.authorizer.password(&self.client, user, password).await))
    }

    // A key is looked up only after it has signed: offering a known public key reveals nothing.
    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let line = key.public_key.to_openssh()?;
        Ok(answer(self.authorizer.key(&self.client, user, line).await))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // A channel without a reply is refused.
        let Some(login) = self.client.login() else { return Ok(()) };
        if Arc::strong_count(&self.channels) > self.channels.limits.channels {
            return Ok(());
        }
        reply.accept().await;
        let open = Arc::clone(&self.channels);
        tokio::spawn(async move {
            console::serve(channel, login, open).await;
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.begin(channel, session)
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.begin(channel, session)
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.begun.remove(&channel);
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}
