//! `credhost dev`: builds and serves services, and reloads them whenever a source is saved.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use clap::Args;
use credhost::accounts::{AccountError, Accounts};
use credhost::config::Home;
use credhost::cred::Key;
use credhost::dev::build::{NotBuilt, build, put};
use credhost::dev::sources::Sources;
use credhost::dev::states::Trial;
use credhost::folder::Placed;
use credhost::loader::private::PrivateFolder;
use credhost::server::{Host, Options};
use credhost::show;
use credhost::store::wait;
use serde_json::json;

use super::{CliError, Output, run, say};

/// The identity that is created to call the services.
const DEVELOPER: &str = "dev";

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// The crates of the services.
    #[arg(required = true, value_name = "CRATE")]
    crates: Vec<PathBuf>,
    /// Serve Perspective Broker on this address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Build with optimizations.
    #[arg(long)]
    release: bool,
    /// Poll for changes (file systems without inotify).
    #[arg(long)]
    poll: bool,
    /// Keep complete copies of loaded libraries, so that gdb and perf find symbols and lines.
    #[arg(long)]
    debuggable: bool,
}

impl Dev {
    pub(super) fn run(self, home: Home, output: Output) -> Result<(), CliError> {
        for folder in &self.crates {
            if !folder.join("Cargo.toml").is_file() {
                let error = NotBuilt::NoCrate(folder.clone());
                return Err(CliError::from(error).hint("`credhost new NAME` makes one"));
            }
        }
        home.make()?;
        let plugins = home.plugins();
        let token = home.path().join("dev.token");
        let (listen, poll, debuggable) = (self.listen.clone(), self.poll, self.debuggable);
        let options = Options { listen, poll, debuggable, ..Options::default() };
        run::serve(home, &options, async |host| {
            say(&format!("serving Perspective Broker on {}", host.address()));
            let crates = self.crates.iter().map(|folder| Watched {
                folder: folder.clone(),
                name: shown(folder),
                arguments: if self.release { vec!["--release"] } else { Vec::new() },
                plugins: plugins.clone(),
                token: token.clone(),
                output,
                host: Rc::clone(&host),
            });
            for watched in crates {
                let sources = Sources::new(&watched.folder, self.poll);
                // For as long as the host runs.
                tokio::task::spawn_local(watched.watch_sources(sources));
            }
            Ok(())
        })
    }
}

/// How many unreadable states one line names.
const SHOWN: usize = 3;

/// Tries all saved states of a service. Returns how many there are, and the owner and the reason of each that cannot be read.
fn unreadable(trial: &Trial, accounts: &Accounts, service: &str) -> Result<(usize, Vec<(String, String)>), String> {
    let (mut count, mut found, mut after) = (0, Vec::new(), None::<String>);
    loop {
        // One at a time: some of them together may be a gigabyte.
        let page = wait(|done| accounts.store().states(service, after.as_deref(), 1, done))
            .map_err(|error| error.to_string())?;
        let Some((name, saved)) = page.into_iter().next() else { return Ok((count, found)) };
        count += 1;
        if let Some(why) = trial.read(&name, &saved.state)? {
            found.push((if name.is_empty() { "the service itself".to_owned() } else { name.clone() }, why));
        }
        after = Some(name);
    }
}

/// One crate.
struct Watched {
    folder: PathBuf,
    name: String,
    arguments: Vec<&'static str>,
    plugins: PathBuf,
    token: PathBuf,
    output: Output,
    host: Rc<Host>,
}

impl Watched {
    async fn watch_sources(self, mut sources: Sources) {
        let mut changed = Vec::new();
        let mut called = None;
        loop {
            let since = SystemTime::now();
            let (served, crates) = self.once(&changed).await;
            sources.also(&crates, since);
            if let Some(service) = served.filter(|service| called.as_ref() != Some(service)) {
                called = Some(service.clone());
                if let Err(trouble) = self.first_call(&service) {
                    say(&format!("{}: {}", self.name, trouble.error));
                }
            }
            changed = sources.changed().await;
        }
    }

    /// Builds and serves the crate, and reports the outcome in one line. Returns the service's name, if it serves, and the
    /// folders of the other crates that it is built with.
    async fn once(&self, changed: &[PathBuf]) -> (Option<String>, Vec<PathBuf>) {
        let what = match changed {
            [] => "first build".to_owned(),
            [one] => format!("{} changed", one.display()),
            [one, rest @ ..] => format!("{} and {} more changed", one.display(), rest.len()),
        };
        let began = Instant::now();
        let (folder, arguments) = (self.folder.clone(), self.arguments.clone());
        let built = tokio::task::spawn_blocking(move || build(&folder, &arguments)).await;
        let compile = began.elapsed();
        let built = match built {
            Ok(Ok(built)) => built,
            Ok(Err(why)) => {
                self.line(&what, None, &format!("{why}; {}", self.meanwhile()), &serde_json::json!({}));
                let NotBuilt::Fails { crates } = why else { return (None, Vec::new()) };
                return (None, self.others(crates));
            }
            Err(error) => {
                self.line(&what, None, &error.to_string(), &serde_json::json!({}));
                return (None, Vec::new());
            }
        };
        let others = self.others(built.crates);
        let mut served = None;
        for (_, library) in built.libraries {
            let began = Instant::now();
            let (place, new) = match put(&library, &self.plugins) {
                Ok(put) => put,
                Err(error) => {
                    self.line(&what, Some(compile), &format!("it cannot be copied: {error}"), &serde_json::json!({}));
                    continue;
                }
            };
            let placed = self.host.place(&place).await;
            let took = began.elapsed().as_secs_f64() * 1e3;
            match placed {
                Ok(Placed { service, reloaded }) => {
                    let how = match &reloaded {
                        _ if !new => "nothing has changed in it".to_owned(),
                        Some(reloaded) => format!("live in {took:.0} ms: {reloaded}"),
                        None => format!("live in {took:.0} ms"),
                    };
                    let more = serde_json::json!({ "service": service, "live_ms": took, "reloaded": reloaded });
                    self.line(&what, Some(compile), &how, &more);
                    self.tell_unreadable(&service, &place).await;
                    served = Some(service);
                }
                Err(why) => {
                    let how = format!("refused: {why}; {}", self.meanwhile());
                    self.line(&what, Some(compile), &how, &serde_json::json!({ "refused": why.to_string() }));
                }
            }
        }
        (served, others)
    }

    /// Reports which saved states the serving code cannot read: their owners cannot attach.
    async fn tell_unreadable(&self, service: &str, library: &Path) {
        let (accounts, service, library) = (Arc::clone(self.host.accounts()), service.to_owned(), library.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            let folder = tempfile::Builder::new().prefix("credhost-").tempdir().map_err(|error| error.to_string())?;
            let private = PrivateFolder::new(folder.path().join("libraries")).map_err(|error| error.to_string())?;
            unreadable(&Trial::open(&library, &private)?, &accounts, &service)
        });
        let looked = looked.await.unwrap_or_else(|error| Err(error.to_string()));
        let (say_so, more) = match looked {
            Ok((_, states)) if states.is_empty() => return,
            Ok((count, states)) => {
                let first: Vec<String> =
                    states.iter().take(SHOWN).map(|(name, why)| format!("{name}: {why}")).collect();
                let rest = if states.len() > SHOWN { ", …" } else { "" };
                let cannot =
                    format!("{} of {} cannot be read", states.len(), show::many(count, "saved state", "saved states"));
                (
                    format!("{cannot}; their owners cannot attach: {}{rest}", first.join(", ")),
                    json!({ "unreadable": states }),
                )
            }
            Err(why) => (format!("the saved states could not be checked: {why}"), json!({})),
        };
        self.line("saved states", None, &say_so, &more);
    }

    /// All crates but its own.
    fn others(&self, mut crates: Vec<PathBuf>) -> Vec<PathBuf> {
        let own = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        crates.retain(|folder| *folder != own);
        crates
    }

    fn meanwhile(&self) -> &'static str {
        let file = |library: &credhost::control::LibraryStatus| library.file.contains(&self.name.replace('-', "_"));
        let serves = self.host.libraries().iter().any(|library| file(library) && library.state == "serving");
        if serves { "the old code serves" } else { "nothing serves yet" }
    }

    fn line(&self, what: &str, compile: Option<std::time::Duration>, how: &str, more: &serde_json::Value) {
        let mut value = serde_json::json!({ "crate": self.name, "what": what, "how": how });
        if let (Some(all), Some(more)) = (value.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
            all.insert("compile_s".to_owned(), compile.map(|compile| compile.as_secs_f64()).into());
        }
        self.output.show(&value, || {
            let compiled =
                compile.map(|took| format!("compiled in {:.1} s · ", took.as_secs_f64())).unwrap_or_default();
            format!("{} · {what} · {compiled}{how}", self.name)
        });
    }

    /// Creates an identity that may call the service, and prints how to call it.
    fn first_call(&self, service: &str) -> Result<(), CliError> {
        let accounts = self.host.accounts();
        if matches!(accounts.get(DEVELOPER), Err(AccountError::Missing { .. })) {
            accounts.add(DEVELOPER, None)?;
        }
        accounts.key_add(DEVELOPER, &Key::new(service, DEVELOPER)?)?;
        if !self.token.exists() {
            // A token whose file was lost is of no use any more.
            let _ = accounts.credential_remove(DEVELOPER, "token", "dev");
            let token = accounts.token_new(DEVELOPER, "dev", None)?;
            write_secret(&self.token, token.reveal())?;
        }
        let manifest = self.host.services().service(service).map(|slot| slot.manifest());
        let method = manifest.as_ref().and_then(|manifest| manifest.methods.first());
        let (method, arguments) = method.map_or(("METHOD", String::new()), |method| {
            let names: Vec<String> =
                method.parameters().iter().map(|name| format!(" {}", name.to_uppercase())).collect();
            (method.name.as_str(), names.concat())
        });
        let (address, token) = (self.host.address(), quoted(&self.token.to_string_lossy()));
        say(&format!("  credhost call {DEVELOPER}@{address}/{service} {method}{arguments} --token-stdin < {token}"));
        Ok(())
    }
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    // From a start that was cut off.
    let _ = std::fs::remove_file(&new);
    let written = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
        writeln!(file, "{secret}")?;
        file.sync_all()
    });
    // The file is there only if it is whole: on a full disk the next start tries again.
    written.and_then(|()| std::fs::rename(&new, path)).inspect_err(|_| drop(std::fs::remove_file(&new)))
}

fn shown(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+@".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
