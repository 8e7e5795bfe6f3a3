//! A client for the sample service chat: it says what is typed, and shows what is heard. Its connection may come and go.
//!
//! ```text
//! cargo run -p pb --features client,tls --example chat_client -- alice@127.0.0.1:8787
//! cargo run -p pb --features client,tls --example chat_client -- --ca ca.pem alice@this.host:8788
//! ```
//!
//! The password is the first line that it reads.

use std::process::ExitCode;

use pb::client::tls::Trust;
use pb::client::{Call, Credential, Endpoint, Error, Session, Status};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (target, ca) = match words[..] {
        [target] => (target, None),
        ["--ca", ca, target] => (target, Some(ca)),
        _ => return wrong("chat_client [--ca FILE] NAME@HOST:PORT"),
    };
    let Some((name, address)) = target.split_once('@') else {
        return wrong("NAME@HOST:PORT, as in alice@127.0.0.1:8787");
    };
    let endpoint = match ca.map(Trust::in_file) {
        None => Endpoint::tcp(address),
        Some(Ok(trust)) => Endpoint::tls(address, trust),
        Some(Err(error)) => return wrong(&format!("{}: {error}", ca.unwrap_or_default())),
    };
    match chat(endpoint, name).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => wrong(&error.to_string()),
    }
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("{what}");
    ExitCode::FAILURE
}

async fn chat(endpoint: Endpoint, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let password = lines.next_line().await?.unwrap_or_default();
    let session = Session::builder(endpoint, Credential::password(name, &password)).start();
    // Asked for on each connection: she hears what is said also when she says nothing.
    let chat = session.perspective_with("chat", None, heard);
    session.connected().await?;
    let mut watch = session.watch();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                match chat.call("say", &(&line,)).await {
                    Ok(_) => {}
                    // The others may have heard it or not: the user decides whether to say it again.
                    Err(Error::Lost(why)) => println!("({why}: was it said?)"),
                    Err(Error::Failure(failure)) => println!("({failure})"),
                    Err(error) => return Err(error.into()),
                }
            }
            status = watch.next() => match status {
                Some(Status::Connecting { why, .. }) => println!("({why})"),
                Some(Status::Connected) => println!("(here again)"),
                Some(Status::Refused(why)) => return Err(why.into()),
                _ => {}
            }
        }
    }
}

/// What the service calls: `heard(who, text)`, `told(who, text)`, `came(who)`, `went(who)`.
async fn heard(call: Call) -> Result<(), pb::Failure> {
    match call.method() {
        "heard" | "told" => {
            let (who, text) = call.read::<(String, String)>()?;
            println!("{who}: {text}");
        }
        "came" | "went" => println!("{} {}", call.read::<(String,)>()?.0, call.method()),
        _ => return Err(call.unknown()),
    }
    Ok(())
}
