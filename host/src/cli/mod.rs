//! Commands: one small file each.

mod audit;
mod backup;
mod call;
mod check;
mod demo;
mod describe;
mod dev;
mod doctor;
mod help;
mod home;
mod identity;
mod import;
mod init;
mod key;
mod limits;
mod log;
mod master_key;
mod new;
mod output;
mod pubkey;
mod run;
mod service;
mod session;
mod tls;
mod token;
mod trial;
mod upgrade;
mod vet;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use credhost::show;

use self::output::{Output, say, warn};

/// A host for services that people log in to.
///
/// Services are shared libraries in a folder; clients speak Twisted's Perspective Broker. `credhost demo` shows it all.
#[derive(Debug, Parser)]
#[command(name = "credhost", version, max_term_width = 100)]
struct Cli {
    /// The home folder: configuration, services, secrets.
    #[arg(long, global = true, env = "CREDHOST_HOME", default_value = "credhost-home", value_name = "FOLDER")]
    home: PathBuf,

    /// Print JSON: one value, or one object a line for `audit show` and `identity export`. Times are in seconds since 1970.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the sample services, create two identities, serve, and show a first call.
    Demo(demo::Demo),
    /// Create a crate for a service that compiles, has tests, and runs.
    New(new::New),
    /// Build and serve services; rebuild and reload them whenever a source is saved.
    Dev(dev::Dev),
    /// Test a library: call it in odd ways, reload it a hundred times, report leaks and speed.
    Check(check::Check),
    /// Serve a home folder until Ctrl-C or SIGTERM.
    Run(run::Run),
    /// Call a method of a perspective: USER@HOST[:PORT]/SERVICE[/PERSPECTIVE] METHOD ARGUMENT…
    Call(call::Call),
    /// Show a service's methods, types and docs.
    Describe(describe::Describe),
    /// Manage identities.
    #[command(subcommand)]
    Identity(identity::Identity),
    /// Manage SSH public keys.
    #[command(subcommand)]
    Pubkey(pubkey::Pubkey),
    /// Manage access tokens for programs.
    #[command(subcommand)]
    Token(token::Token),
    /// Manage what an identity may use: its keyring.
    #[command(subcommand)]
    Key(key::Key),
    /// Show and end sessions.
    #[command(subcommand)]
    Session(session::Session),
    /// Manage services.
    #[command(subcommand)]
    Service(service::Service),
    /// Show and verify the audit trail: logins, refusals, changes.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Copy the store into a file, also while the host runs. Does not include master.key.
    Backup(backup::Backup),
    /// Replace the store by a backup. No host may be running.
    Restore(backup::Restore),
    /// Create certificates.
    #[command(subcommand)]
    Tls(tls::Tls),
    /// Replace the key that encrypts secrets in the store.
    #[command(subcommand)]
    MasterKey(master_key::MasterKey),
    /// Show the limits on clients, and current use.
    Limits(limits::Limits),
    /// Apply changed settings in credhost.toml.
    Reload(limits::Reload),
    /// Replace the running host by another version of credhost; new connections wait meanwhile.
    Upgrade(upgrade::Upgrade),
    /// Report what is wrong, or will be soon.
    Doctor(doctor::Doctor),
    /// Check a library without loading it into a host.
    Vet(vet::Vet),
    #[command(name = credhost::loader::vet::WORD, hide = true)]
    VetInChild { copy: PathBuf },
    /// Print a script that completes commands in a shell.
    Completions {
        /// bash, zsh, fish …
        shell: clap_complete::Shell,
    },
}

/// Why a command has failed, and what to do.
#[derive(Debug)]
struct CliError {
    error: String,
    hint: Option<String>,
}

impl CliError {
    fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: std::error::Error> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// Reports that the arguments are not a command, or prints the help or the version.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // The help or the version was requested.
        return match error.print() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => failed(false, &not_printed(&error)),
            _ => ExitCode::SUCCESS,
        };
    }
    let for_program = std::env::args_os().any(|argument| argument == "--json");
    if for_program {
        let text = error.render().to_string();
        let (first, rest) = text.trim().split_once('\n').unwrap_or((text.trim(), ""));
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let hint = Some(rest.trim()).filter(|rest| !rest.is_empty());
        warn(&show::json(&serde_json::json!({ "error": first, "hint": hint })));
    } else {
        // There is nowhere else to report an error.
        let _ = error.print();
    }
    ExitCode::from(2)
}

fn not_printed(why: &dyn std::fmt::Display) -> CliError {
    CliError::new(format!("the output could not be written to standard output: {why}"))
}

fn failed(json: bool, trouble: &CliError) -> ExitCode {
    if json {
        warn(&show::json(&serde_json::json!({ "error": trouble.error, "hint": trouble.hint })));
    } else {
        // Further lines come from what it quotes: mark them, so that none passes for the program's own.
        warn(&format!("credhost: {}", trouble.error.trim_end().replace('\n', "\n  | ")));
        if let Some(hint) = &trouble.hint {
            warn(&format!("  {}", hint.trim_end().replace('\n', "\n  | ")));
        }
    }
    ExitCode::FAILURE
}

pub(crate) fn main() -> ExitCode {
    let parsed = help::grouped(Cli::command()).try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output { json: cli.json };
    if matches!(cli.command, Command::Run(_) | Command::Dev(_) | Command::Demo(_)) && init::is_first() {
        return init::run().unwrap_or_else(|trouble| failed(output.json, &trouble));
    }
    let home = credhost::config::Home::new(cli.home);
    let done = match cli.command {
        Command::Demo(demo) => demo.run(home),
        Command::New(new) => new.run(output),
        Command::Dev(dev) => dev.run(home, output),
        Command::Check(check) => check.run(&home, output),
        Command::Run(run) => run.run(home, output),
        Command::Call(call) => call.run(output),
        Command::Describe(describe) => describe.run(&home, output),
        Command::Identity(identity) => identity.run(&home, output),
        Command::Pubkey(pubkey) => pubkey.run(&home, output),
        Command::Token(token) => token.run(&home, output),
        Command::Key(key) => key.run(&home, output),
        Command::Session(session) => session.run(&home, output),
        Command::Audit(audit) => audit.run(&home, output),
        Command::Backup(backup) => backup.run(&home, output),
        Command::Restore(restore) => restore.run(&home, output),
        Command::Tls(tls) => tls.run(&home, output),
        Command::MasterKey(key) => key.run(&home, output),
        Command::Limits(limits) => limits.run(&home, output),
        Command::Reload(reload) => reload.run(&home, output),
        Command::Upgrade(upgrade) => upgrade.run(&home, output),
        Command::Doctor(doctor) => doctor.run(&home, output),
        Command::Service(service) => service.run(&home, output),
        Command::Vet(vet) => vet.run(&home, output),
        Command::VetInChild { copy } => credhost::loader::vet::child(&copy),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "credhost", &mut script);
            output::say_bytes(&script);
            Ok(())
        }
    };
    match (done, output::unprinted()) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Ok(()), Some(why)) => failed(output.json, &not_printed(&why)),
        (Err(trouble), _) => failed(output.json, &trouble),
    }
}
