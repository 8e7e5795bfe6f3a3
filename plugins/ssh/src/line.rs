//! A line editor with the common keys of readline, without IO. It takes the bytes of a terminal, and returns what to draw.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};
use vte::{Params, Parser, Perform};

/// How many lines are remembered.
const HISTORY: usize = 200;
/// The width of a terminal that does not report it.
const WIDE: usize = 80;

/// What the typed keys ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// A line was entered.
    Line(String),
    /// A line was entered that was too long: its end was not kept.
    TooLong,
    /// Complete the text before the cursor.
    Complete(String),
    /// The line was given up (Ctrl-C).
    Interrupt,
    /// The session is to end (Ctrl-D on an empty line).
    End,
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Letter(char),
    Enter,
    Tab,
    Backspace,
    Delete,
    Left,
    Right,
    Home,
    End,
    Up,
    Down,
    WordLeft,
    WordRight,
    KillWord,
    KillBefore,
    KillBehind,
    Transpose,
    Redraw,
    Interrupt,
    Leave,
}

/// Keys, as the parser finds them.
#[derive(Default)]
struct Keys(Vec<Key>);

impl Perform for Keys {
    fn print(&mut self, letter: char) {
        self.0.push(if letter == '\u{7f}' { Key::Backspace } else { Key::Letter(letter) });
    }

    fn execute(&mut self, byte: u8) {
        self.0.extend(match byte {
            b'\r' | b'\n' => Some(Key::Enter),
            b'\t' => Some(Key::Tab),
            0x08 | 0x7f => Some(Key::Backspace),
            0x01 => Some(Key::Home),
            0x02 => Some(Key::Left),
            0x03 => Some(Key::Interrupt),
            0x04 => Some(Key::Leave),
            0x05 => Some(Key::End),
            0x06 => Some(Key::Right),
            0x0b => Some(Key::KillBehind),
            0x0c => Some(Key::Redraw),
            0x0e => Some(Key::Down),
            0x10 => Some(Key::Up),
            0x14 => Some(Key::Transpose),
            0x15 => Some(Key::KillBefore),
            0x17 => Some(Key::KillWord),
            _ => None,
        });
    }

    fn csi_dispatch(&mut self, params: &Params, _: &[u8], _: bool, action: char) {
        let mut numbers = params.iter().filter_map(|sub| sub.first().copied());
        let (first, second) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let by_word = second > 1;
        self.0.extend(match (action, first) {
            ('A', _) => Some(Key::Up),
            ('B', _) => Some(Key::Down),
            ('C', _) if by_word => Some(Key::WordRight),
            ('D', _) if by_word => Some(Key::WordLeft),
            ('C', _) => Some(Key::Right),
            ('D', _) => Some(Key::Left),
            ('H', _) | ('~', 1 | 7) => Some(Key::Home),
            ('F', _) | ('~', 4 | 8) => Some(Key::End),
            ('~', 3) => Some(Key::Delete),
            _ => None,
        });
    }

    fn esc_dispatch(&mut self, _: &[u8], _: bool, byte: u8) {
        self.0.extend(match byte {
            b'b' => Some(Key::WordLeft),
            b'f' => Some(Key::WordRight),
            0x7f => Some(Key::KillWord),
            _ => None,
        });
    }
}

/// A line that is being typed, and those before it.
pub(crate) struct Editor {
    prompt: String,
    text: Vec<char>,
    cursor: usize,
    history: Vec<String>,
    /// The position in the history; its length is the line that is being typed.
    at: usize,
    /// The line that was being typed, while a line of the history is shown.
    typed: Vec<char>,
    wide: usize,
    /// The most letters of a line.
    most: usize,
    parser: Parser,
    /// The last byte was a carriage return: a line feed behind it does not end another line.
    returned: bool,
    /// Whether the line has changed since it was drawn.
    stale: bool,
    /// Whether more was typed than a line may have.
    over: bool,
}

impl Editor {
    pub(crate) fn new(prompt: &str, wide: usize, most: usize) -> Self {
        let mut editor = Self {
            prompt: prompt.to_owned(),
            text: Vec::new(),
            cursor: 0,
            history: Vec::new(),
            at: 0,
            typed: Vec::new(),
            wide: WIDE,
            most,
            parser: Parser::new(),
            returned: false,
            stale: true,
            over: false,
        };
        editor.resize(wide);
        editor
    }

    /// Sets the width of the terminal; 0: unknown.
    pub(crate) fn resize(&mut self, wide: usize) {
        self.wide = if wide == 0 { WIDE } else { wide.clamp(10, 1000) };
    }

    /// Processes a typed byte, and appends what to draw to `out`. [`Editor::redraw`] draws the line itself, once for all bytes
    /// that have arrived.
    pub(crate) fn typed(&mut self, byte: u8, out: &mut String) -> Option<Done> {
        let behind_return = std::mem::replace(&mut self.returned, byte == b'\r');
        if byte == b'\n' && behind_return {
            return None;
        }
        let mut keys = Keys::default();
        self.parser.advance(&mut keys, &[byte]);
        // A byte is one key at most.
        keys.0.into_iter().find_map(|key| self.key(key, out))
    }

    fn key(&mut self, key: Key, out: &mut String) -> Option<Done> {
        match key {
            Key::Enter => {
                self.redraw(out);
                out.push_str("\r\n");
                if std::mem::take(&mut self.over) {
                    self.clear();
                    return Some(Done::TooLong);
                }
                let line: String = self.text.iter().collect();
                self.remember(&line);
                return Some(Done::Line(line));
            }
            Key::Interrupt => {
                self.redraw(out);
                out.push_str("^C\r\n");
                self.clear();
                return Some(Done::Interrupt);
            }
            Key::Leave if self.text.is_empty() => {
                out.push_str("\r\n");
                return Some(Done::End);
            }
            Key::Tab => return Some(Done::Complete(self.text[..self.cursor].iter().collect())),
            Key::Redraw => out.push_str("\u{1b}[2J\u{1b}[H"),
            key => self.edit(key),
        }
        self.stale = true;
        None
    }

    /// Draws the line, if it has changed since it was drawn.
    pub(crate) fn redraw(&mut self, out: &mut String) {
        if self.stale {
            self.draw(out);
        }
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Letter(letter) => self.insert(letter),
            Key::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.text.remove(self.cursor);
            }
            Key::Delete | Key::Leave if self.cursor < self.text.len() => {
                self.text.remove(self.cursor);
            }
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.text.len(),
            Key::WordLeft => self.cursor = self.word_left(),
            Key::WordRight => self.cursor = self.word_right(),
            Key::KillWord => {
                let from = self.word_left();
                self.text.drain(from..self.cursor);
                self.cursor = from;
            }
            Key::KillBefore => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            Key::KillBehind => self.text.truncate(self.cursor),
            Key::Transpose if self.cursor > 0 && self.text.len() > 1 => {
                let at = self.cursor.min(self.text.len() - 1);
                self.text.swap(at - 1, at);
                self.cursor = at + 1;
            }
            Key::Up if self.at > 0 => self.go(self.at - 1),
            Key::Down if self.at < self.history.len() => self.go(self.at + 1),
            _ => {}
        }
    }

    fn insert(&mut self, letter: char) {
        if self.text.len() >= self.most {
            self.over = true;
            return;
        }
        self.text.insert(self.cursor, letter);
        self.cursor += 1;
    }

    fn word_left(&self) -> usize {
        let mut at = self.cursor;
        while at > 0 && self.text[at - 1] == ' ' {
            at -= 1;
        }
        while at > 0 && self.text[at - 1] != ' ' {
            at -= 1;
        }
        at
    }

    fn word_right(&self) -> usize {
        let mut at = self.cursor;
        while at < self.text.len() && self.text[at] == ' ' {
            at += 1;
        }
        while at < self.text.len() && self.text[at] != ' ' {
            at += 1;
        }
        at
    }

    /// Shows a line of the history, or again the one that was being typed.
    fn go(&mut self, at: usize) {
        if self.at == self.history.len() {
            self.typed = std::mem::take(&mut self.text);
        }
        self.at = at;
        self.text = match self.history.get(at) {
            Some(line) => line.chars().collect(),
            None => std::mem::take(&mut self.typed),
        };
        self.cursor = self.text.len();
    }

    fn remember(&mut self, line: &str) {
        if !line.trim().is_empty() && self.history.last().is_none_or(|last| last != line) {
            self.history.push(line.to_owned());
            if self.history.len() > HISTORY {
                self.history.remove(0);
            }
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.text.clear();
        self.typed.clear();
        (self.cursor, self.at, self.over) = (0, self.history.len(), false);
    }

    /// Replaces the text from byte `start` to the cursor.
    pub(crate) fn complete(&mut self, start: usize, word: &str) {
        let before: String = self.text[..self.cursor].iter().collect();
        let from = before.get(..start).map_or(self.cursor, |kept| kept.chars().count());
        self.text.drain(from..self.cursor);
        self.cursor = from;
        word.chars().for_each(|letter| self.insert(letter));
        self.stale = true;
    }

    /// Draws the line, with the cursor in its place. Of a line that is wider than the terminal, the part at the cursor is
    /// visible.
    pub(crate) fn draw(&mut self, out: &mut String) {
        self.stale = false;
        let room = self.wide.saturating_sub(self.prompt.width() + 1).max(1);
        // Only the part at the cursor is examined, however long the line is.
        let (mut from, mut before) = (self.cursor, 0);
        while from > 0 && before + wide(self.text[from - 1]) < room {
            from -= 1;
            before += wide(self.text[from]);
        }
        let (mut to, mut behind) = (self.cursor, 0);
        while to < self.text.len() && before + behind + wide(self.text[to]) <= room {
            behind += wide(self.text[to]);
            to += 1;
        }
        out.push('\r');
        out.push_str(&self.prompt);
        out.extend(self.text[from..to].iter().map(|letter| if letter.is_control() { '?' } else { *letter }));
        out.push_str("\u{1b}[K");
        if behind > 0 {
            out.push_str(&format!("\u{1b}[{behind}D"));
        }
    }

    /// Erases the line, so that something else can be shown in its place.
    pub(crate) fn hide(out: &mut String) {
        out.push_str("\r\u{1b}[K");
    }
}

/// How many columns a letter takes.
fn wide(letter: char) -> usize {
    // A control character is drawn, too.
    if letter.is_control() { 1 } else { letter.width().unwrap_or(1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest line, in letters.
    const LONGEST: usize = 4 << 10;

    fn typed(editor: &mut Editor, bytes: &[u8]) -> Vec<Done> {
        let mut out = String::new();
        bytes.iter().filter_map(|byte| editor.typed(*byte, &mut out)).collect()
    }

    fn line(bytes: &[u8]) -> Vec<Done> {
        typed(&mut Editor::new("> ", 80, LONGEST), bytes)
    }

    #[test]
    fn keys_work_as_in_other_line_editors() {
        let one = |text: &str| vec![Done::Line(text.to_owned())];
        for (keys, wanted) in [
            (&b"milk\r"[..], "milk"),
            (b"milk\r\n", "milk"),
            ("h\u{e9}\u{65e5}\r".as_bytes(), "h\u{e9}\u{65e5}"),
            (b"mik\x1b[Dl\r", "milk"),
            (b"ilk\x01m\r", "milk"),
            (b"ilk\x1b[Hm\x1b[F!\r", "milk!"),
            (b"milkk\x7f\r", "milk"),
            (b"xmilk\x01\x1b[3~\r", "milk"),
            (b"xmilk\x01\x04\r", "milk"),
            (b"buy milk\x17bread\r", "buy bread"),
            (b"buy milk\x15bread\r", "bread"),
            (b"buy milk\x01\x1bf\x0b\r", "buy"),
            (b"imlk\x02\x02\x14\r", "imlk"),
            (b"a\x1b[1;5Db\r", "ba"),
            (b"x\x03milk\r", "milk"),
        ] {
            let done = line(keys);
            let done: Vec<Done> = done.into_iter().filter(|done| *done != Done::Interrupt).collect();
            let expected = if keys.starts_with(b"imlk") { one("ilmk") } else { one(wanted) };
            assert_eq!(done, expected, "{}", keys.escape_ascii());
        }
        assert_eq!(line(b"\x04"), [Done::End]);
        assert_eq!(line(b"to\t"), [Done::Complete("to".to_owned())]);
    }

    #[test]
    fn earlier_lines_can_be_recalled() {
        let mut editor = Editor::new("> ", 80, LONGEST);
        typed(&mut editor, b"one\rtwo\r");
        let lines = |done: Vec<Done>| format!("{done:?}");
        assert_eq!(lines(typed(&mut editor, b"\x1b[A\r")), "[Line(\"two\")]");
        assert_eq!(
            lines(typed(&mut editor, b"\x1b[A\x1b[A\r")),
            "[Line(\"one\")]",
            "what comes twice in a row is kept once"
        );
        assert_eq!(
            lines(typed(&mut editor, b"begun\x1b[A\x1b[B!\r")),
            "[Line(\"begun!\")]",
            "nothing that was begun is lost"
        );
    }

    #[test]
    fn a_word_is_completed_in_its_place() {
        let mut editor = Editor::new("> ", 80, LONGEST);
        typed(&mut editor, b"todo ad milk\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D");
        editor.complete(5, "add");
        assert_eq!(typed(&mut editor, b"\r"), [Done::Line("todo add milk".to_owned())]);
    }

    #[test]
    fn no_part_of_a_line_that_is_too_long_is_run() {
        let mut editor = Editor::new("> ", 80, LONGEST);
        let letters = "x".repeat(LONGEST);
        assert_eq!(typed(&mut editor, format!("{letters}\r").as_bytes()), [Done::Line(letters.clone())]);
        assert_eq!(
            typed(&mut editor, format!("{letters}y\rmilk\r").as_bytes()),
            [Done::TooLong, Done::Line("milk".to_owned())]
        );
        assert_eq!(typed(&mut editor, format!("{letters}y\x03milk\r").as_bytes()).len(), 2);
    }

    #[test]
    fn a_long_line_is_shown_where_the_cursor_is() {
        let (mut editor, mut out) = (Editor::new("> ", 20, LONGEST), String::new());
        typed(&mut editor, b"0123456789abcdefghijklmnopqrstuvwxyz");
        editor.draw(&mut out);
        assert_eq!(out, "\r> klmnopqrstuvwxyz\u{1b}[K");
        typed(&mut editor, b"\x01");
        out.clear();
        editor.draw(&mut out);
        assert_eq!(out, "\r> 0123456789abcdefg\u{1b}[K\u{1b}[17D");
    }

    proptest! {
        #[test]
        fn any_input_is_drawn_within_the_terminal(bytes in proptest::collection::vec(any::<u8>(), 0..300), wide in 0usize..200) {
            let (mut editor, mut out) = (Editor::new("alice> ", wide, LONGEST), String::new());
            for byte in bytes {
                out.clear();
                editor.typed(byte, &mut out);
                prop_assert!(editor.cursor <= editor.text.len());
                out.clear();
                editor.draw(&mut out);
                let drawn: usize = out.trim_start_matches('\r').split('\u{1b}').next().unwrap_or_default().width();
                prop_assert!(drawn <= editor.wide, "{drawn} of {}", editor.wide);
            }
        }
    }
}
