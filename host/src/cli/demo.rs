//! `credhost demo`: everything at once, for newcomers.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;
use credhost::accounts::AccountError;
use credhost::config::{Home, random};
use credhost::cred::{Identity, Key, Password};
use credhost::dev::build::put;
use credhost::server::{Host, Options};
use pb::client::Client;
use zeroize::Zeroizing;

use super::{CliError, run, say};

/// The services to build, in `plugins/`.
const SAMPLES: [&str; 3] = ["todo", "scores", "chat"];
/// The identities to create.
const PEOPLE: [&str; 2] = ["alice", "bob"];
/// The letters of passwords: none that looks like another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Serve Perspective Broker on this address.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8787")]
    listen: String,
    /// The checkout whose sample services are built.
    #[arg(long, value_name = "FOLDER", hide = true)]
    workspace: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, home: Home) -> Result<(), CliError> {
        let workspace = match self.workspace {
            Some(workspace) => workspace,
            None => workspace()?,
        };
        home.make()?;
        say("building the sample services …");
        for library in build(&workspace)? {
            put(&library, &home.plugins())?;
        }
        let options = Options { listen: Some(self.listen), ..Options::default() };
        run::serve(home, &options, first_call)
    }
}

/// The checkout that contains the current folder, or else the one that this program was built in.
fn workspace() -> Result<PathBuf, CliError> {
    let has_samples = |folder: &Path| folder.join("plugins/todo/Cargo.toml").is_file();
    let here = std::env::current_dir()?;
    here.ancestors()
        .chain(Path::new(env!("CARGO_MANIFEST_DIR")).parent())
        .find(|folder| has_samples(folder))
        .map(Path::to_owned)
        .ok_or_else(|| {
            CliError::new("the sample services' sources are not here").hint("run the demo in a checkout of credhost")
        })
}

/// Builds the samples, in a target directory of their own.
fn build(workspace: &Path) -> Result<Vec<PathBuf>, CliError> {
    let target = workspace.join("target/plugins").display().to_string();
    let mut arguments = vec!["--release", "--target-dir", &target];
    for sample in SAMPLES {
        arguments.extend(["--package", sample]);
    }
    let built = credhost::dev::build::build(workspace, &arguments)
        .map_err(|error| CliError::from(error).hint("the demo builds services: it needs Rust's cargo"))?;
    Ok(built.libraries.into_iter().filter(|(name, _)| SAMPLES.contains(&name.as_str())).map(|(_, path)| path).collect())
}

fn password() -> Result<Zeroizing<String>, CliError> {
    let random: [u8; 20] = random()?;
    Ok(Zeroizing::new(random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()))
}

/// Creates the two identities if they do not exist, and makes one call through a real socket.
async fn first_call(host: Rc<Host>) -> Result<(), CliError> {
    let address = host.address();
    say(&format!("serving Perspective Broker on {address}\n"));
    let mut new = Vec::new();
    for name in PEOPLE {
        let accounts = host.accounts();
        if matches!(accounts.get(name), Err(AccountError::Missing { .. })) {
            let password = password()?;
            accounts.add(name, Some(&Password::new(&password)))?;
            for service in SAMPLES {
                accounts.key_add(name, &Key::new(service, name)?)?;
            }
            new.push((name, password));
        }
    }
    if new.is_empty() {
        say("alice and bob exist already; their passwords were printed when they were created.");
        say("Forgotten? cargo run --release -- identity password alice\n");
    } else {
        say("Two identities with their passwords, which are printed only once:");
        for (name, password) in &new {
            say(&format!("  {name:6} {}", **password));
        }
        say("");
    }
    let shown = match new.first() {
        Some((name, password)) => call(address, name, password).await?,
        None => call_as_guest(&host).await?,
    };
    say(&format!("A first call, through a socket: alice's todo.list() answers {shown}\n"));
    say("Next, from another terminal:");
    say(&format!("  cargo run --release -- call alice@{address}/todo add milk"));
    say("  cargo run --release -- describe todo");
    say(&format!("  cp your_service.so {}/", std::path::absolute(host.plugins())?.display()));
    say("\nOr from Twisted (pip install Twisted):\n");
    say(&python(address.port()));
    say("\nCtrl-C stops.");
    Ok(())
}

async fn call(address: std::net::SocketAddr, name: &str, password: &str) -> Result<String, CliError> {
    let client = Client::new(tokio::net::TcpStream::connect(address).await?).await?;
    let todo = client.login(&format!("{name}/todo/alice"), password, None).await?;
    Ok(todo.call("list", &()).await?.value()?.to_string())
}

/// On a second run, no password is known: an identity that exists only for this call makes it.
async fn call_as_guest(host: &Host) -> Result<String, CliError> {
    let password = password()?;
    let name = format!("demo-{:016x}", u64::from_le_bytes(random()?));
    let mut guest = Identity::new(&name)?;
    guest.set_password(&Password::new(&password), host.accounts().key(), &credhost::config::entropy()?)?;
    guest.keyring.add(Key::new("todo", "alice")?);
    let accounts = host.accounts();
    accounts.insert(guest, accounts.event("identity.added", &name))?;
    let answer = call(host.address(), &name, &password).await;
    accounts.remove(&name)?;
    answer
}

fn python(port: u16) -> String {
    format!(
        "from getpass import getpass
from twisted.cred.credentials import UsernamePassword
from twisted.internet import task
from twisted.spread import pb
async def main(reactor):
    factory = pb.PBClientFactory()
    reactor.connectTCP(\"127.0.0.1\", {port}, factory)
    todo = await factory.login(UsernamePassword(b\"alice/todo\", getpass().encode()))
    print(await todo.callRemote(\"add\", \"milk\"), await todo.callRemote(\"list\"))
task.react(main)"
    )
}
