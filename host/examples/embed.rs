//! The example of Twisted.Cred's own documentation, as a program of one's own: a MultiService named "pb", a
//! DefaultAuthorizer, two services that are linked in, and an Endpoint on a port.
//!
//! ```text
//! cargo run --example embed -- [ADDRESS]
//! ```

use credhost::embed::{Builder, Password};
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

    let host = Builder::new()
        .service::<MyService>()
        .service::<AnotherService>()
        .identity("alice", &Password::new("alice-pw"), &["my service", "another service"])
        .serve(&address)
        .await?;
    println!("serving on {}; alice's password is alice-pw", host.address());

    tokio::signal::ctrl_c().await?;
    host.close().await;
    Ok(())
}
