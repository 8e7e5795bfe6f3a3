//! `credhost doctor`

use clap::Args;
use credhost::config::Home;
use credhost::control::Request;
use credhost::doctor::{self, Finding};
use credhost::show;

use super::home::ask;
use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let found: Vec<Finding> = match ask(home, &Request::Doctor {}) {
            Ok(answer) => serde_json::from_value(answer)?,
            Err(trouble) if !home.path().exists() => return Err(trouble),
            // Check what can be checked all the same.
            Err(trouble) => {
                let first = Finding { level: "wrong".to_owned(), what: trouble.error, hint: trouble.hint };
                let others =
                    doctor::files(home).into_iter().filter(|other| other.what != first.what).collect::<Vec<_>>();
                std::iter::once(first).chain(others).collect()
            }
        };
        let answer = serde_json::to_value(&found)?;
        output.show(&answer, || {
            let line = |finding: &Finding| {
                let hint = finding.hint.as_ref().filter(|_| finding.level != "ok");
                let hint = hint.map_or_else(String::new, |hint| format!("\n         {hint}"));
                format!("{:8} {}{hint}", finding.level, show::line(&finding.what))
            };
            found.iter().map(line).collect::<Vec<_>>().join("\n")
        });
        let wrong = found.iter().filter(|finding| finding.level == "wrong").count();
        match wrong {
            0 => Ok(()),
            1 => Err(CliError::new("1 problem to fix")),
            _ => Err(CliError::new(format!("{wrong} problems to fix"))),
        }
    }
}
