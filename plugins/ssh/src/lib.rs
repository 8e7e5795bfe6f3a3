//! Every service by SSH: the model for a door that is a service of its own.
//!
//! An identity with a key for this service logs in with its SSH keys, a password or a token, and reaches what it has keys for:
//! `ssh alice@host todo add milk`, or an interactive line. russh implements the protocol. `command`, `line` and `show` handle
//! what is typed and shown, without IO.
//!
//! The operator permits this: `[service.ssh] may = ["attach", "vouch"]`, and gives it an address:
//! `[service.ssh.listen] ssh = { address = "0.0.0.0:22", encrypted = true, grace = "8 hours" }`. The limits of one connection
//! are in `limits.rs`: `[service.ssh] channels = 20`.

mod called;
mod command;
mod console;
mod door;
mod limits;
mod line;
mod show;
mod wire;

use std::sync::Arc;

use plugin_api::Listener;
use plugin_api::prelude::*;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{HashAlg, PrivateKey};

use self::limits::Limits;

plugin_api::export!(Ssh);

/// Where the host's key is, in the service's data.
const HOST_KEY: &str = "host-key";

struct Ssh {
    /// The host's public key, in OpenSSH's format; empty until the service has started.
    host_key: String,
    limits: Limits,
}

/// Every service by SSH.
#[service("ssh", save = "never")]
impl Service for Ssh {
    type Perspective = Visitor;

    fn init(_: &Context<Self>, config: &Config) -> Result<Self> {
        let limits = config.read::<Limits>()?.checked()?;
        Ok(Self { host_key: String::new(), limits })
    }

    async fn start(me: Handle<Self>, context: Context<Self>) -> Result<()> {
        let streams = context.listen("ssh")?;
        // In a task, because the store accepts a service's writes only once it serves.
        context.clone().spawn(async move {
            if let Err(fault) = serve(&me, &context, streams).await {
                tracing::error!("nobody can connect by SSH: {fault}");
            }
        });
        Ok(())
    }
}

/// Serves all connections.
async fn serve(me: &Handle<Ssh>, context: &Context<Ssh>, mut streams: Listener) -> Result<()> {
    let key = host_key(context).await?;
    let line = key.public_key().to_openssh().map_err(|error| Fault::value(error.to_string()))?;
    tracing::info!("the host's key is {} (Ed25519)", key.public_key().fingerprint(HashAlg::Sha256));
    me.write(|ssh| ssh.host_key = line)?;
    let limits = me.read(|ssh| ssh.limits)?;
    let config = Arc::new(door::config(key));
    while let Some(stream) = streams.accept().await {
        context.spawn_for(door::serve(Arc::clone(&config), context.authorizer(), stream, limits));
    }
    Ok(())
}

/// The host's key: created if there is none yet, and kept in the store.
async fn host_key(context: &Context<Ssh>) -> Result<PrivateKey> {
    let wrong = |error: russh::keys::ssh_key::Error| Fault::value(format!("the host's key: {error}"));
    if let Some(kept) = context.data().get::<String>(HOST_KEY).await? {
        return PrivateKey::from_openssh(plugin_api::Zeroizing::new(kept).as_bytes()).map_err(wrong);
    }
    let mut seed = plugin_api::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| Fault::value(error.to_string()))?;
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    if !context.vetting() {
        context.data().put(HOST_KEY, &*key.to_openssh(LineEnding::LF).map_err(wrong)?).await?;
    }
    Ok(key)
}

/// An identity that may log in by SSH.
#[derive(Default)]
struct Visitor;

/// Information about the host's side of SSH.
#[perspective]
impl Visitor {
    /// Returns the host's public key, as in a line of `known_hosts` after the host's name.
    fn host_key(&self, context: &Context<Ssh>) -> Result<String> {
        context.service()?.read(|ssh| ssh.host_key.clone())
    }
}
