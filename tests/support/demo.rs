//! `credhost demo`, as a newcomer runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::host::TestHome;
use crate::workspace;

/// A running demo that has printed everything that it prints before the first client connects.
pub struct Demo {
    child: Child,
    pub printed: Vec<String>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the demo in this home, until it has printed its introduction.
///
/// # Panics
/// When it ends.
#[must_use]
pub fn demo(home: &TestHome) -> Demo {
    let mut command = home.command();
    command.args(["demo", "--listen", "127.0.0.1:0", "--workspace"]).arg(workspace());
    // The demo builds its services in this test's own target directory, whichever that is.
    command.env("CARGO_TARGET_DIR", crate::target());
    let child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("the demo runs");
    let mut demo = Demo { child, printed: Vec::new() };
    let lines = BufReader::new(demo.child.stdout.take().expect("it prints")).lines();
    for line in lines.map_while(Result::ok) {
        demo.printed.push(line);
        if demo.printed.last().is_some_and(|line| line.contains("Ctrl-C stops")) {
            return demo;
        }
    }
    panic!("the demo ended: {:#?}", demo.printed);
}

impl Demo {
    /// Returns the line that contains this text.
    ///
    /// # Panics
    /// When it was not printed.
    #[must_use]
    pub fn line(&self, text: &str) -> &str {
        let found = self.printed.iter().find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("{text:?} was not printed: {:#?}", self.printed))
    }

    /// Returns the Python code that it prints.
    ///
    /// # Panics
    /// When it prints no Python.
    #[must_use]
    pub fn python(&self) -> String {
        let start = self.printed.iter().position(|line| line.contains("from getpass")).expect("Python is printed");
        let lines = self.printed[start..].iter().take_while(|line| !line.is_empty());
        lines.map(|line| line.clone() + "\n").collect()
    }
}
