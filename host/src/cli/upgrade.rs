//! `credhost upgrade`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use credhost::config::Home;
use credhost::control::{self, ControlError, Request};
use credhost::show;
use serde_json::Value;

use super::home::ask_running;
use super::output::warn;
use super::{CliError, Output};

/// How long the new program may take until it serves: its services may need time to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often to check whether it serves.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// The new program; by default this one.
    program: Option<PathBuf>,
    /// Continue even if it could not load some serving libraries.
    #[arg(long)]
    anyway: bool,
}

impl Upgrade {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let program = match self.program {
            Some(program) => std::path::absolute(program)?,
            None => std::env::current_exe()?,
        };
        if program.to_str().is_none() {
            let error = format!("{} cannot be used: its path is not UTF-8", program.display());
            return Err(CliError::new(error).hint("give it another name"));
        }
        let began = Instant::now();
        let request = Request::Upgrade { program, anyway: self.anyway };
        let Some(answer) = ask_running(home, &request)? else {
            return Err(CliError::new("no host runs in this home").hint("start the new program: `credhost run`"));
        };
        for lost in answer["lost"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            warn(&format!("credhost: warning: {}", show::line(lost)));
        }
        let mut now = served(home, &answer["before"])?;
        if let Some(why) = now["not_taken_over"].as_str() {
            let error = format!("{why}: the previous program serves again");
            return Err(CliError::new(error).hint("clients were disconnected and can reconnect"));
        }
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let (from, to) = (text(&answer["before"]["version"]), text(&now["version"]));
        (now["before"], now["lost"]) = (answer["before"].clone(), answer["lost"].clone());
        now["seconds"] = began.elapsed().as_secs_f64().into();
        output.show(&now, || {
            format!(
                "credhost {to} serves, in place of credhost {from}, in the same process ({}), {:.1} s after it was asked for",
                now["process"],
                began.elapsed().as_secs_f64()
            )
        });
        Ok(())
    }
}

/// Whether a process has ended, also if nobody has waited for it yet.
fn has_ended(process: u64) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat"));
    // The state follows the name, which is in brackets and may have any characters.
    state.is_err() || state.is_ok_and(|text| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

/// Waits until another host than the one in `before` serves. Returns what it says about itself.
fn served(home: &Home, before: &Value) -> Result<Value, CliError> {
    let began = Instant::now();
    let process = before["process"].as_u64().unwrap_or_default();
    while began.elapsed() < PATIENCE {
        match control::send(&home.control(), &Request::About {}, &mut |_, _| {}) {
            Ok(Ok(now)) if now["began"] != before["began"] && now["serves"] == true => return Ok(now),
            // Between the two programs, nobody answers; the new one answers while it starts.
            Ok(_) | Err(ControlError::NoHost | ControlError::NotBegun | ControlError::Ended) => {}
            Err(error) => return Err(error.into()),
        }
        if has_ended(process) {
            let error = "the new program ended while starting: no host runs in this home";
            return Err(CliError::new(error).hint("its log has the reason; `credhost run` starts a host"));
        }
        std::thread::sleep(LOOK);
    }
    let error = format!("the new program does not answer, {} s after it was started", PATIENCE.as_secs());
    Err(CliError::new(error).hint("its log shows what it waits for"))
}
