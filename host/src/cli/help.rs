//! `--help`, with the commands grouped by purpose.

use clap::Command;
use clap::builder::StyledStr;

/// Every command, in the order in which it is shown.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Writing services", &["demo", "new", "dev", "check", "vet"]),
    ("Using services", &["call", "describe", "completions"]),
    ("Operating accounts", &["identity", "pubkey", "token", "key", "session"]),
    (
        "Operating the host",
        &["run", "service", "limits", "reload", "upgrade", "doctor", "audit", "backup", "restore", "tls", "master-key"],
    ),
];

/// The program's help, with its commands in groups.
pub(super) fn grouped(command: Command) -> Command {
    let header = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let width = command.get_subcommands().map(|command| command.get_name().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (group, names) in GROUPS {
        text.push_str(&format!("{header}{group}:{header:#}\n"));
        for known in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let (name, about) = (known.get_name(), known.get_about().map(ToString::to_string).unwrap_or_default());
            text.push_str(&format!("  {literal}{name:width$}{literal:#}  {about}\n"));
        }
        text.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}{header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    command.help_template(StyledStr::from(template))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let command = super::super::Cli::command();
        let mut count: BTreeMap<&str, u32> = BTreeMap::new();
        for name in GROUPS.iter().flat_map(|(_, names)| *names) {
            *count.entry(*name).or_default() += 1;
        }
        for known in command.get_subcommands().filter(|known| !known.is_hide_set()) {
            assert_eq!(count.remove(known.get_name()), Some(1), "{}", known.get_name());
        }
        assert!(count.is_empty(), "there are no such commands: {count:?}");
    }
}
