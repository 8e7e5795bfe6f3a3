//! `credhost limits`, `credhost reload`

use std::collections::BTreeMap;

use clap::Args;
use credhost::config::Home;
use credhost::control::Request;
use credhost::limits::LimitStatus;

use super::home::{ask, table};
use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct Limits {}

impl Limits {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let answer = ask(home, &Request::Limits {})?;
        let limits: Vec<LimitStatus> = serde_json::from_value(answer["limits"].clone())?;
        let own: BTreeMap<String, Vec<(String, String)>> =
            serde_json::from_value(answer["of_listeners"].clone()).unwrap_or_default();
        let largest: Vec<(String, u64)> = serde_json::from_value(answer["largest"].clone())?;
        output.show(&answer, || {
            let head = ["limit", "is", "in use", "what it limits"].map(str::to_owned).to_vec();
            let rows = limits.iter().map(|limit| {
                let used = limit.used.clone().unwrap_or_default();
                vec![limit.name.clone(), limit.shown.clone(), used, limit.about.clone()]
            });
            let mut text = table(&[head].into_iter().chain(rows).collect::<Vec<_>>());
            for (place, limits) in &own {
                let rows: Vec<Vec<String>> = limits.iter().map(|(name, is)| vec![name.clone(), is.clone()]).collect();
                text += &format!("\n\nof [{place}]\n{}", table(&rows));
            }
            if !largest.is_empty() {
                let rows: Vec<Vec<String>> = largest
                    .iter()
                    .map(|(who, bytes)| vec![format!("{} KiB", bytes.div_ceil(1024)), who.clone()])
                    .collect();
                text += &format!("\n\nmost memory is used for\n{}", table(&rows));
            }
            text
        });
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Reload {}

impl Reload {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let answer = ask(home, &Request::Reload {})?;
        let changed: Vec<String> = serde_json::from_value(answer.clone())?;
        output.show(&answer, || match changed.is_empty() {
            true => "the changeable settings in credhost.toml are the same as before".to_owned(),
            false => changed.join("\n"),
        });
        Ok(())
    }
}
