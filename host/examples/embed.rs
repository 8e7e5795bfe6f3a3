//! The example of Twisted.Cred's own documentation, as a program of one's own: a MultiService named "pb", a
//! DefaultAuthorizer, two services that are linked in, and an Endpoint on a port.
//!
//! ```text
//! cargo run --example embed -- [ADDRESS]
//! ```

use std::sync::Arc;

use credhost::cred::login::Login;
use credhost::cred::{DefaultAuthorizer, Entropy, Identity, Key, MasterKey, Password};
use credhost::listener::Endpoint;
use credhost::multiservice::MultiService;
use credhost::multiservice::context::HostContext;
use credhost::multiservice::slot::Slot;
use credhost::session::Limits;
use credhost::store::MemoryStore;
use plugin_api::prelude::*;

/// Greets whoever has the key.
#[derive(Default)]
struct MyService;

/// The first of two services.
#[service("my service")]
impl Service for MyService {
    type Perspective = Greeter;
}

#[derive(Default, Serialize, Deserialize)]
struct Greeter {
    greeted: u64,
}

#[perspective]
impl Greeter {
    /// Greets, and counts how often.
    fn greet(&mut self, name: String) -> String {
        self.greeted += 1;
        format!("Hello, {name}, for the {}. time", self.greeted)
    }
}

/// Answers with whatever it is given.
#[derive(Default)]
struct AnotherService;

/// The second of two services.
#[service("another service", save = "never")]
impl Service for AnotherService {
    type Perspective = Echo;
}

#[derive(Default)]
struct Echo;

#[perspective]
impl Echo {
    /// Answers with what it is given.
    fn echo(&self, value: Value) -> Value {
        value
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8787".to_owned());

    let context = HostContext::new(Arc::new(MemoryStore::new()));
    let services = MultiService::new("pb");
    services.add(Slot::linked::<MyService>(&context).await?).await?;
    services.add(Slot::linked::<AnotherService>(&context).await?).await?;

    let mut random = [0; 96];
    getrandom::fill(&mut random)?;
    let (key, random) = random.split_first_chunk::<32>().ok_or("too little randomness")?;
    let (salt, random) = random.split_first_chunk::<16>().ok_or("too little randomness")?;
    let (nonce, random) = random.split_first_chunk::<24>().ok_or("too little randomness")?;
    let (decoy, _) = random.split_first_chunk::<24>().ok_or("too little randomness")?;
    let key = MasterKey::new(*key);
    let authorizer = Arc::new(DefaultAuthorizer::new());
    let mut alice = Identity::new("alice")?;
    alice.set_password(&Password::new("alice-pw"), &key, &Entropy { salt: *salt, nonce: *nonce })?;
    alice.keyring.add(Key::new("my service", "alice")?);
    alice.keyring.add(Key::new("another service", "alice")?);
    authorizer.add(alice)?;

    for (name, why) in services.start().await {
        eprintln!("{name}: {why}");
    }
    let root = Endpoint::new(Login::new(authorizer, key, decoy), Arc::clone(&services), context, Limits::default());
    let door = root.listen(&address)?;
    println!("serving on {}; alice's password is alice-pw", door.address());

    tokio::signal::ctrl_c().await?;
    door.close();
    services.stop().await;
    Ok(())
}
