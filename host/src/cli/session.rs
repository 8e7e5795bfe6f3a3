//! `credhost session`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use credhost::sessions::SessionStatus;

use super::home::{ask, headed, when};
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Session {
    /// List connections with a login.
    List,
    /// Close a connection by its number, or all connections of an identity by its name.
    Cut {
        /// A number as `list` shows it, or an identity's name.
        which: String,
    },
}

impl Session {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let answer = ask(home, &Request::SessionList {})?;
                let sessions: Vec<SessionStatus> = serde_json::from_value(answer.clone())?;
                output.show(&answer, || listed(&sessions));
            }
            Self::Cut { which } => {
                let number = which.parse().ok();
                let identity = if number.is_none() { Some(which.clone()) } else { None };
                let answer = ask(home, &Request::SessionCut { session: number, identity })?;
                let cut = answer.as_array().map_or(0, Vec::len);
                if cut == 0 {
                    return Err(CliError::new(format!("there is no session of {which}"))
                        .hint("`credhost session list` shows those there are"));
                }
                output.show(&answer, || format!("{cut} cut"));
            }
        }
        Ok(())
    }
}

fn listed(sessions: &[SessionStatus]) -> String {
    if sessions.is_empty() {
        return "nobody is logged in".to_owned();
    }
    let rows = sessions.iter().map(|session| {
        vec![
            session.session.to_string(),
            session.identities.join(" "),
            session.peer.clone(),
            if session.tls { "encrypted" } else { "clear" }.to_owned(),
            when(session.since),
            session.perspectives.join(" "),
        ]
    });
    headed(["number", "identities", "from", "by", "since", "perspectives"], rows.collect())
}
