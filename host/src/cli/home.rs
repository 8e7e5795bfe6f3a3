//! Asks the running host, or does it itself where none runs.

use std::io::{BufRead, IsTerminal};

use credhost::config::{Accounts, Home};
use credhost::control::{self, ControlError, Failed, Request, Secret};
use zeroize::Zeroizing;

use super::Trouble;

fn trouble(failed: Failed) -> Trouble {
    Trouble { error: failed.error, hint: failed.hint }
}

/// Does what is asked for: a running host at once, or else on the files of its home.
pub(super) fn ask(home: &Home, request: &Request) -> Result<serde_json::Value, Trouble> {
    match control::send(&home.control(), request) {
        Ok(answer) => answer.map_err(trouble),
        Err(ControlError::NoHost) => {
            let makes = matches!(request, Request::IdentityAdd { .. });
            if makes {
                home.make()?
            } else {
                home.check()?
            }
            let _lock = home.lock()?;
            let (accounts, _) = Accounts::open(home)?;
            control::perform(request, &accounts, None).map_err(trouble)
        }
        Err(error) => Err(error.into()),
    }
}

/// A password: from standard input, or typed at a prompt; twice, if it is a new one.
pub(super) fn password(from_stdin: bool, prompt: &str, twice: bool) -> Result<Secret, Trouble> {
    if from_stdin {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().lock().read_line(&mut line)?;
        let text = line.trim_end_matches(['\n', '\r']);
        return Ok(Secret(Zeroizing::new(text.to_owned())));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Trouble::new("there is no terminal to ask for a password at")
            .hint("give it on standard input: --password-stdin"));
    }
    let typed = Zeroizing::new(rpassword::prompt_password(prompt)?);
    if twice {
        let again = Zeroizing::new(rpassword::prompt_password("once more: ")?);
        if *typed != *again {
            return Err(Trouble::new("the two passwords differ; nothing was changed"));
        }
    }
    Ok(Secret(typed))
}

/// A column of texts, as wide as the widest.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = widths[column] - cell.chars().count();
            format!("{cell}{}", " ".repeat(pad))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
