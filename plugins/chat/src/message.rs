//! A line of IRC (RFC 2812, section 2.3): a command and its parameters.

use zeroize::Zeroize;

/// The longest line that is sent, in bytes, including its terminator.
const LONGEST: usize = 512;
/// The most parameters of a line.
const PARAMETERS: usize = 15;

/// A line, as a client sends it. Erased when it is dropped: some have a password in them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// In capitals.
    pub(crate) command: String,
    pub(crate) parameters: Vec<String>,
}

impl Drop for Message {
    fn drop(&mut self) {
        self.parameters.iter_mut().for_each(Zeroize::zeroize);
    }
}

impl Message {
    /// Parses a line without its terminator. Tags and the prefix are skipped, because nothing here uses them. Returns `None` if
    /// the line is empty.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut rest = line.trim_start_matches(' ');
        for mark in ['@', ':'] {
            if rest.starts_with(mark) {
                rest = rest.split_once(' ').map_or("", |(_, rest)| rest).trim_start_matches(' ');
            }
        }
        let (command, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if command.is_empty() {
            return None;
        }
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches(' ');
            if rest.is_empty() {
                break;
            }
            if let Some(last) = rest.strip_prefix(':') {
                parameters.push(last.to_owned());
                break;
            }
            if parameters.len() + 1 == PARAMETERS {
                parameters.push(rest.to_owned());
                break;
            }
            let (parameter, others) = rest.split_once(' ').unwrap_or((rest, ""));
            parameters.push(parameter.to_owned());
            rest = others;
        }
        Some(Self { command: command.to_ascii_uppercase(), parameters })
    }

    /// The parameter at this index, if it exists and is not empty.
    pub(crate) fn parameter(&self, index: usize) -> Option<&str> {
        self.parameters.get(index).map(String::as_str).filter(|parameter| !parameter.is_empty())
    }
}

/// A line to send: truncated, and without characters that would end it early.
pub(crate) fn line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if matches!(c, '\r' | '\n' | '\0') { ' ' } else { c }).collect();
    let mut end = line.len().min(LONGEST - 2);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push_str("\r\n");
    line
}

/// Splits a text into lines that each begin with `head`: between characters, at the last blank if there is one.
pub(crate) fn lines(head: &str, text: &str) -> Vec<String> {
    let room = LONGEST.saturating_sub(2 + head.len()).max(4);
    let mut lines = Vec::new();
    for mut rest in text.split(['\r', '\n']).filter(|part| !part.is_empty()) {
        while !rest.is_empty() {
            let mut end = rest.len().min(room);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            if end < rest.len()
                && let Some(blank) = rest[..end].rfind(' ').filter(|blank| *blank > 0)
            {
                end = blank;
            }
            let (part, others) = rest.split_at(end);
            lines.push(line(&format!("{head}{part}")));
            rest = others.trim_start_matches(' ');
        }
    }
    lines
}

/// A name as a nickname of IRC, which has no blanks and no special characters.
pub(crate) fn nick(name: &str) -> String {
    let odd =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, ',' | '*' | '?' | '!' | '@' | ':' | '.' | '/');
    let nick: String = name.chars().map(|c| if odd(c) { '_' } else { c }).collect();
    if nick.starts_with(['#', '&', '+', '$', '~', '%']) || nick.is_empty() { format!("_{nick}") } else { nick }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> (String, Vec<String>) {
        Message::read(line).map(|message| (message.command.clone(), message.parameters.clone())).unwrap_or_default()
    }

    #[test]
    fn a_line_is_a_command_and_its_parameters() {
        let rows: [(&str, &str, &[&str]); 8] = [
            ("NICK alice", "NICK", &["alice"]),
            ("privmsg #chat :hello  all", "PRIVMSG", &["#chat", "hello  all"]),
            ("@time=x;y :alice!a@b PRIVMSG  #chat  hi", "PRIVMSG", &["#chat", "hi"]),
            ("USER a 0 * :", "USER", &["a", "0", "*", ""]),
            ("PING ::", "PING", &[":"]),
            ("  QUIT", "QUIT", &[]),
            ("@tags", "", &[]),
            ("", "", &[]),
        ];
        for (line, command, parameters) in rows {
            assert_eq!(
                read(line),
                (command.to_owned(), parameters.iter().map(|one| (*one).to_owned()).collect()),
                "{line}"
            );
        }
        assert_eq!(read(&format!("A{}", " b".repeat(40))).1.len(), PARAMETERS);
    }

    #[test]
    fn a_name_is_a_nickname() {
        for (name, wanted) in [("alice", "alice"), ("a b,c", "a_b_c"), ("#x", "_#x"), ("änne", "änne"), (" ", "_")] {
            assert_eq!(nick(name), wanted);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_sent_as_whole_lines_of_up_to_512_bytes(head in ":[a-z]{1,30} PRIVMSG #chat :", text in "\\PC{0,900}|[ \r\n\0a-zß€]{0,900}") {
            let sent = lines(&head, &text);
            for one in &sent {
                prop_assert!(one.len() <= LONGEST && one.ends_with("\r\n"));
                prop_assert!(one.starts_with(&head) && !one[..one.len() - 2].contains(['\r', '\n', '\0']));
            }
            let said: String = sent.iter().map(|one| one[head.len()..one.len() - 2].replace(' ', "")).collect();
            prop_assert_eq!(said, text.replace(['\0', ' ', '\r', '\n'], ""), "nothing is left out but blanks");
        }

        #[test]
        fn any_line_can_be_read(line in "\\PC*") {
            if let Some(message) = Message::read(&line) {
                prop_assert!(message.parameters.len() <= PARAMETERS && !message.command.contains(' '));
            }
        }
    }
}
