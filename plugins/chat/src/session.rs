//! What one client of IRC has sent so far, and what its next line leads to. No IO: the results are [`Act`]s.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::message::{Message, line};

/// The room's name in IRC.
pub(crate) const ROOM: &str = "#chat";
/// The server's name.
pub(crate) const SERVER: &str = "credhost";
/// The number of failed logins after which the client is disconnected.
const TRIES: u8 = 3;
/// The most recipients of one message.
pub(crate) const TARGETS: usize = 4;
/// The longest response in SASL: three pieces of 400 bytes.
const SASL: usize = 1200;

/// What a client's line leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Send it this line.
    Say(String),
    /// Check a name and a password, then call [`Session::logged_in`] or [`Session::refused`].
    LogIn(String, Zeroizing<String>),
    /// The same by the certificate that it has presented. Without a name, the certificate says whose it is.
    LogInByCertificate(String),
    /// It has come in: greet it.
    Welcome,
    /// It enters the room.
    Join,
    /// It leaves the room.
    Part(String),
    /// It says something to the room, or to somebody. `notice`: no automatic replies.
    Speak { to: String, text: String, notice: bool },
    /// It wants to know who is in the room.
    Names,
    /// The same, as a table.
    Who,
    /// It wants to know who somebody is.
    Whois(String),
    /// It wants to know which of these are here.
    IsOn(Vec<String>),
    /// Switch to TLS.
    Secure,
    /// Disconnect it.
    Quit(String),
}

/// The state of a client's SASL exchange.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
enum Sasl {
    #[default]
    No,
    /// It has chosen PLAIN; what it has sent so far.
    Plain(#[serde(skip)] Zeroizing<String>),
    /// It has chosen EXTERNAL: the certificate that it has presented says who it is.
    External,
    /// The proof is being checked.
    Asked,
}

/// What a client's connection lets it do.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Means {
    /// It can switch to TLS.
    pub(crate) start_tls: bool,
    /// It has presented a certificate.
    pub(crate) certificate: bool,
}

impl Means {
    /// The ways to log in by SASL.
    fn ways(self) -> &'static str {
        if self.certificate { "PLAIN,EXTERNAL" } else { "PLAIN" }
    }
}

/// One client.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    /// The nickname that it wants, until it has its own.
    wanted: Option<String>,
    /// The user name that it sent.
    user: Option<String>,
    /// It is negotiating capabilities: it is greeted only afterwards.
    negotiates: bool,
    sasl: Sasl,
    #[serde(skip)]
    password: Option<Zeroizing<String>>,
    /// Its nickname, once it has logged in.
    nick: Option<String>,
    welcomed: bool,
    pub(crate) joined: bool,
    /// Whether it receives what it says itself.
    pub(crate) echo: bool,
    pinged: bool,
    tries: u8,
}

/// A numeric reply.
fn numeric(number: u16, nick: &str, text: &str) -> Act {
    Act::Say(line(&format!(":{SERVER} {number:03} {nick} {text}")))
}

fn say(text: &str) -> Act {
    Act::Say(line(text))
}

impl Session {
    /// Its nickname; `*` until it has logged in.
    pub(crate) fn nick(&self) -> &str {
        self.nick.as_deref().unwrap_or("*")
    }

    /// Whether it has come in.
    pub(crate) fn is_in(&self) -> bool {
        self.welcomed
    }

    pub(crate) fn has_logged_in(&self) -> bool {
        self.nick.is_some()
    }

    /// It has logged in, but could not come in: the next code lets it in.
    pub(crate) fn waits_outside(&mut self) {
        self.welcomed = false;
    }

    /// Whether it comes in now, if it waits outside.
    pub(crate) fn comes_in(&mut self) -> bool {
        !self.welcomed && self.has_logged_in() && self.ready() == [Act::Welcome]
    }

    /// Whether it can be handed over: a password that was received must not be serialized.
    pub(crate) fn rests(&self) -> bool {
        self.nick.is_some() || self.password.is_none() && !matches!(self.sasl, Sasl::Plain(_) | Sasl::Asked)
    }

    /// Processes a line.
    pub(crate) fn line(&mut self, message: &Message, means: Means) -> Vec<Act> {
        self.pinged = false;
        match message.command.as_str() {
            "PING" => vec![say(&format!(":{SERVER} PONG {SERVER} :{}", message.parameter(0).unwrap_or_default()))],
            "PONG" => Vec::new(),
            "QUIT" => vec![Act::Quit(message.parameter(0).unwrap_or("gone").to_owned())],
            "CAP" => self.capabilities(message, means),
            "STARTTLS" if self.has_logged_in() => vec![numeric(691, self.nick(), ":too late")],
            "STARTTLS" if !means.start_tls => vec![numeric(691, self.nick(), ":TLS is not available here")],
            "STARTTLS" => vec![Act::Secure],
            "AUTHENTICATE" => self.authenticate(message, means),
            _ if self.welcomed => self.inside(message),
            _ => self.register(message),
        }
    }

    fn capabilities(&mut self, message: &Message, means: Means) -> Vec<Act> {
        const ALL: [&str; 2] = ["sasl", "echo-message"];
        let nick = self.nick().to_owned();
        match message.parameter(0).unwrap_or_default().to_ascii_uppercase().as_str() {
            "LS" => {
                self.negotiates |= !self.welcomed;
                let new = message.parameter(1).and_then(|version| version.parse::<u32>().ok()) >= Some(302);
                let sasl = if new { format!("sasl={}", means.ways()) } else { "sasl".to_owned() };
                vec![say(&format!(":{SERVER} CAP {nick} LS :{sasl} echo-message"))]
            }
            "LIST" => {
                let echo = if self.echo { "echo-message" } else { "" };
                vec![say(&format!(":{SERVER} CAP {nick} LIST :{echo}"))]
            }
            "REQ" => {
                self.negotiates |= !self.welcomed;
                let wanted = message.parameter(1).unwrap_or_default();
                let known = wanted.split_whitespace().all(|one| ALL.contains(&one.trim_start_matches('-')));
                if known {
                    for one in wanted.split_whitespace().filter(|one| one.ends_with("echo-message")) {
                        self.echo = !one.starts_with('-');
                    }
                }
                let answer = if known { "ACK" } else { "NAK" };
                vec![say(&format!(":{SERVER} CAP {nick} {answer} :{wanted}"))]
            }
            "END" => {
                self.negotiates = false;
                self.ready()
            }
            _ => vec![numeric(410, &nick, "CAP :there is no such subcommand")],
        }
    }

    fn authenticate(&mut self, message: &Message, means: Means) -> Vec<Act> {
        let nick = self.nick().to_owned();
        if self.nick.is_some() {
            return vec![numeric(907, &nick, ":you have logged in already")];
        }
        let given = message.parameter(0).unwrap_or_default();
        match &mut self.sasl {
            _ if given == "*" => {
                self.sasl = Sasl::No;
                vec![numeric(906, &nick, ":given up")]
            }
            Sasl::No if given.eq_ignore_ascii_case("PLAIN") => {
                // Allocate the whole capacity now: a string that grows leaves copies behind.
                self.sasl = Sasl::Plain(Zeroizing::new(String::with_capacity(SASL + 512)));
                vec![say("AUTHENTICATE +")]
            }
            Sasl::No if given.eq_ignore_ascii_case("EXTERNAL") && means.certificate => {
                self.sasl = Sasl::External;
                vec![say("AUTHENTICATE +")]
            }
            Sasl::No => vec![
                numeric(908, &nick, &format!("{} :are the available SASL mechanisms", means.ways())),
                numeric(904, &nick, ":there is no such SASL mechanism"),
            ],
            Sasl::Asked => vec![numeric(904, &nick, ":one login at a time")],
            Sasl::External => {
                let name = match given {
                    "+" => Some(String::new()),
                    given => BASE64.decode(given.as_bytes()).ok().and_then(|name| String::from_utf8(name).ok()),
                };
                self.sasl = if name.is_some() { Sasl::Asked } else { Sasl::No };
                match name {
                    Some(name) => vec![Act::LogInByCertificate(name)],
                    None => self.refused("malformed EXTERNAL response", 0),
                }
            }
            Sasl::Plain(said) => {
                let longer = said.len() + given.len() > SASL;
                if given != "+" && !longer {
                    said.push_str(given);
                }
                if longer {
                    self.sasl = Sasl::No;
                    return vec![numeric(905, &nick, ":too long")];
                }
                // A piece of full length is followed by another one.
                if given.len() == 400 {
                    return Vec::new();
                }
                let read = plain(said);
                self.sasl = if read.is_some() { Sasl::Asked } else { Sasl::No };
                match read {
                    Some((name, password)) => vec![Act::LogIn(name, password)],
                    None => self.refused("malformed PLAIN response", 0),
                }
            }
        }
    }

    fn register(&mut self, message: &Message) -> Vec<Act> {
        match (message.command.as_str(), message.parameter(0)) {
            ("PASS" | "NICK" | "USER", None) => {
                vec![numeric(461, self.nick(), &format!("{} :what?", message.command))]
            }
            // A client that has logged in needs no password: this one may be meant for a program in front of other servers.
            ("PASS", Some(_)) if self.nick.is_some() => Vec::new(),
            ("PASS", Some(password)) => {
                self.password = Some(Zeroizing::new(password.to_owned()));
                Vec::new()
            }
            ("NICK", Some(nick)) => {
                self.wanted = Some(nick.to_owned());
                self.ready()
            }
            ("USER", Some(user)) => {
                self.user = Some(user.to_owned());
                self.ready()
            }
            _ => vec![numeric(451, self.nick(), ":log in first")],
        }
    }

    /// Lets the client in, or starts its login, if everything for that has arrived.
    fn ready(&mut self) -> Vec<Act> {
        let (Some(wanted), Some(user)) = (self.wanted.clone(), self.user.clone()) else { return Vec::new() };
        if self.negotiates || self.welcomed {
            return Vec::new();
        }
        if self.nick.is_some() {
            self.welcomed = true;
            return vec![Act::Welcome];
        }
        if matches!(self.sasl, Sasl::Asked) {
            return Vec::new();
        }
        match self.password.take() {
            Some(password) => {
                self.sasl = Sasl::Asked;
                // "name:password" says whose it is if the nickname does not; the name must be the user name or the nickname.
                match password.split_once(':').filter(|(name, _)| *name == user || *name == wanted) {
                    Some((name, password)) => vec![Act::LogIn(name.to_owned(), Zeroizing::new(password.to_owned()))],
                    None => vec![Act::LogIn(wanted, password)],
                }
            }
            None => vec![
                numeric(464, "*", ":log in: by SASL, or with PASS before NICK and USER"),
                Act::Quit("no login".to_owned()),
            ],
        }
    }

    /// The login has succeeded, with this nickname.
    pub(crate) fn logged_in(&mut self, nick: &str) -> Vec<Act> {
        (self.sasl, self.password) = (Sasl::No, None);
        self.nick = Some(nick.to_owned());
        let mut acts = vec![
            numeric(900, nick, &format!("{nick}!{nick}@{SERVER} {nick} :you are logged in as {nick}")),
            numeric(903, nick, ":welcome"),
        ];
        acts.extend(self.ready());
        acts
    }

    /// The login has failed.
    pub(crate) fn refused(&mut self, why: &str, wait: u64) -> Vec<Act> {
        self.sasl = Sasl::No;
        self.tries += 1;
        let mut acts = vec![numeric(904, self.nick(), &format!(":{why}"))];
        if !self.negotiates {
            acts.push(numeric(464, self.nick(), &format!(":{why}")));
        }
        if self.tries >= TRIES || wait > 0 || !self.negotiates {
            acts.push(Act::Quit(why.to_owned()));
        }
        acts
    }

    /// No input has arrived for a while.
    pub(crate) fn idle(&mut self) -> Act {
        if std::mem::replace(&mut self.pinged, true) {
            return Act::Quit("no answer for a while".to_owned());
        }
        say(&format!("PING :{SERVER}"))
    }

    fn inside(&mut self, message: &Message) -> Vec<Act> {
        let nick = self.nick().to_owned();
        let room = |name: &str| name.eq_ignore_ascii_case(ROOM);
        let few = || vec![numeric(461, &nick, &format!("{} :what?", message.command))];
        match message.command.as_str() {
            "JOIN" => match message.parameter(0) {
                None => few(),
                Some("0") => self.part("leaves"),
                Some(rooms) => rooms.split(',').flat_map(|name| self.join(&nick, name)).collect(),
            },
            "PART" => match message.parameter(0) {
                None => few(),
                Some(name) if room(name) && self.joined => self.part(message.parameter(1).unwrap_or("leaves")),
                Some(name) => vec![numeric(442, &nick, &format!("{name} :you are not there"))],
            },
            "PRIVMSG" | "NOTICE" => self.speak(message, &nick),
            "NAMES" => vec![Act::Names],
            "WHO" => vec![Act::Who],
            "WHOIS" => match message.parameters.last().filter(|who| !who.is_empty()) {
                None => vec![numeric(431, &nick, ":whom?")],
                Some(who) => vec![Act::Whois(who.clone())],
            },
            "ISON" => vec![Act::IsOn(
                message.parameters.iter().flat_map(|names| names.split_whitespace()).map(str::to_owned).collect(),
            )],
            "NICK" => vec![numeric(432, &nick, "* :your nickname is the name of your perspective")],
            "MODE" => match message.parameter(0) {
                Some(name) if room(name) && message.parameter(1).is_none_or(|mode| mode.contains('b')) => {
                    match message.parameter(1) {
                        None => vec![numeric(324, &nick, &format!("{ROOM} +nt"))],
                        Some(_) => vec![numeric(368, &nick, &format!("{ROOM} :nobody is kept out"))],
                    }
                }
                Some(name) if room(name) => vec![numeric(482, &nick, &format!("{ROOM} :nobody here has ranks"))],
                _ => vec![numeric(221, &nick, "+")],
            },
            "TOPIC" if message.parameter(1).is_some() => {
                vec![numeric(482, &nick, &format!("{ROOM} :nobody here has ranks"))]
            }
            "TOPIC" => vec![numeric(332, &nick, &format!("{ROOM} :one room, many doors"))],
            "LIST" => vec![
                numeric(322, &nick, &format!("{ROOM} 0 :one room, many doors")),
                numeric(323, &nick, ":that is all"),
            ],
            "MOTD" => vec![numeric(422, &nick, ":there is no message of the day")],
            "AWAY" if message.parameter(0).is_some() => vec![numeric(306, &nick, ":you are marked as away")],
            "AWAY" => vec![numeric(305, &nick, ":you are not marked as away")],
            "USERHOST" => vec![numeric(302, &nick, &format!(":{nick}=+{nick}@{SERVER}"))],
            "USER" | "PASS" => vec![numeric(462, &nick, ":you are in already")],
            other => vec![numeric(421, &nick, &format!("{} :there is no such command", cut(other)))],
        }
    }

    fn join(&mut self, nick: &str, name: &str) -> Vec<Act> {
        match name.eq_ignore_ascii_case(ROOM) {
            true if self.joined => Vec::new(),
            true => {
                self.joined = true;
                vec![Act::Join]
            }
            false => vec![numeric(403, nick, &format!("{} :there is one room here, {ROOM}", cut(name)))],
        }
    }

    fn part(&mut self, why: &str) -> Vec<Act> {
        if std::mem::take(&mut self.joined) { vec![Act::Part(why.to_owned())] } else { Vec::new() }
    }

    fn speak(&self, message: &Message, nick: &str) -> Vec<Act> {
        let notice = message.command == "NOTICE";
        match (message.parameter(0), message.parameter(1)) {
            (None, _) => vec![numeric(411, nick, ":to whom?")],
            (_, None) => vec![numeric(412, nick, ":what?")],
            (Some(to), Some(_)) if to.starts_with('#') && !(self.joined && to.eq_ignore_ascii_case(ROOM)) => {
                vec![numeric(404, nick, &format!("{} :you are not there", cut(to)))]
            }
            (Some(to), _) if to.split(',').count() > TARGETS => {
                vec![numeric(407, nick, &format!("{} :too many at once", cut(to)))]
            }
            (Some(to), Some(text)) => {
                to.split(',').map(|to| Act::Speak { to: to.to_owned(), text: text.to_owned(), notice }).collect()
            }
        }
    }
}

/// What a client has sent, truncated to be shown to it again.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Parses a response of PLAIN (RFC 4616): for whom, who, and the password.
fn plain(said: &str) -> Option<(String, Zeroizing<String>)> {
    let bytes = Zeroizing::new(BASE64.decode(said.as_bytes()).ok()?);
    let mut parts = std::str::from_utf8(&bytes).ok()?.split('\0');
    let (whom, name, password) = (parts.next()?, parts.next()?, parts.next()?);
    let own = !name.is_empty() && (whom.is_empty() || whom == name);
    (own && parts.next().is_none()).then(|| (name.to_owned(), Zeroizing::new(password.to_owned())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(session: &mut Session, text: &str) -> Vec<Act> {
        with(session, text, Means::default())
    }

    fn with(session: &mut Session, text: &str, means: Means) -> Vec<Act> {
        Message::read(text).map(|message| session.line(&message, means)).unwrap_or_default()
    }

    fn said(acts: &[Act]) -> String {
        acts.iter().map(|act| if let Act::Say(line) = act { line.clone() } else { format!("{act:?}\n") }).collect()
    }

    #[test]
    fn a_client_logs_in_by_sasl() {
        let mut session = Session::default();
        assert!(said(&told(&mut session, "CAP LS 302")).contains("LS :sasl=PLAIN echo-message"));
        assert!(told(&mut session, "NICK al").is_empty() && told(&mut session, "USER a 0 * :Al").is_empty());
        assert!(said(&told(&mut session, "CAP REQ :sasl")).contains("ACK :sasl"));
        assert_eq!(said(&told(&mut session, "AUTHENTICATE PLAIN")), "AUTHENTICATE +\r\n");
        let answer = BASE64.encode(b"\0alice\0a password");
        let acts = told(&mut session, &format!("AUTHENTICATE {answer}"));
        assert_eq!(acts, [Act::LogIn("alice".to_owned(), Zeroizing::new("a password".to_owned()))]);
        assert!(!session.rests(), "it is being looked at");
        assert!(said(&session.logged_in("alice")).contains(" 903 alice "));
        assert_eq!(told(&mut session, "CAP END"), [Act::Welcome]);
        assert!(session.rests() && session.is_in());
    }

    #[test]
    fn a_client_logs_in_by_a_certificate() {
        let shown = Means { certificate: true, ..Means::default() };
        for (answer, name) in [("+", ""), ("YWxpY2U=", "alice")] {
            let mut session = Session::default();
            assert!(said(&with(&mut session, "CAP LS 302", shown)).contains("LS :sasl=PLAIN,EXTERNAL echo-message"));
            assert_eq!(said(&with(&mut session, "AUTHENTICATE EXTERNAL", shown)), "AUTHENTICATE +\r\n");
            assert!(session.rests(), "nothing of it is a secret");
            let acts = with(&mut session, &format!("AUTHENTICATE {answer}"), shown);
            assert_eq!(acts, [Act::LogInByCertificate(name.to_owned())]);
            assert!(!session.rests(), "it is being looked at");
            assert!(said(&session.logged_in("alice")).contains(" 903 alice "));
        }
        // EXTERNAL is not offered to a client without a certificate.
        let mut session = Session::default();
        let acts = told(&mut session, "AUTHENTICATE EXTERNAL");
        assert!(said(&acts).contains(" 908 * PLAIN ") && said(&acts).contains(" 904 "), "{acts:?}");
        let mut session = Session::default();
        with(&mut session, "CAP LS 302", shown);
        with(&mut session, "AUTHENTICATE EXTERNAL", shown);
        assert!(said(&with(&mut session, "AUTHENTICATE %%%", shown)).contains(" 904 "));
    }

    #[test]
    fn a_client_logs_in_by_pass() {
        for (pass, nick, user, name, password) in [
            ("a password", "alice", "x", "alice", "a password"),
            ("alice:a password", "al", "alice", "alice", "a password"),
            ("alice:a password", "alice", "x", "alice", "a password"),
            ("my:password", "alice", "x", "alice", "my:password"),
        ] {
            let mut session = Session::default();
            assert!(told(&mut session, &format!("PASS :{pass}")).is_empty() && !session.rests());
            assert!(told(&mut session, &format!("NICK {nick}")).is_empty());
            let acts = told(&mut session, &format!("USER {user} 0 * :Al"));
            assert_eq!(acts, [Act::LogIn(name.to_owned(), Zeroizing::new(password.to_owned()))]);
            assert_eq!(session.logged_in("alice").last(), Some(&Act::Welcome));
        }
    }

    #[test]
    fn nobody_comes_in_without_a_login() {
        let mut session = Session::default();
        for line in ["JOIN #chat", "PRIVMSG #chat :hi", "NAMES", "WHO *", "LIST"] {
            assert!(said(&told(&mut session, line)).contains(" 451 "), "{line}");
        }
        told(&mut session, "NICK alice");
        let acts = told(&mut session, "USER a 0 * :Al");
        assert!(said(&acts).contains(" 464 ") && matches!(acts.last(), Some(Act::Quit(_))));
        assert!(!session.is_in());
    }

    #[test]
    fn three_wrong_passwords_are_enough() {
        let mut session = Session::default();
        told(&mut session, "CAP LS 302");
        for turn in 1..=3 {
            told(&mut session, "AUTHENTICATE PLAIN");
            assert!(
                told(&mut session, "AUTHENTICATE eA==").iter().any(|act| matches!(act, Act::Quit(_))) == (turn == 3)
            );
        }
    }

    #[test]
    fn invalid_answers_to_plain_are_refused() {
        for said in ["", "!!!!", "AAA=", "YQBi", "AGEAYgBj", "eABhAGI="] {
            assert_eq!(plain(said), None, "{said}");
        }
    }

    #[test]
    fn a_silent_client_is_pinged_once() {
        let mut session = Session::default();
        assert!(said(&[session.idle()]).starts_with("PING"));
        told(&mut session, "PONG x");
        assert!(said(&[session.idle()]).starts_with("PING"));
        assert!(matches!(session.idle(), Act::Quit(_)));
    }

    proptest! {
        /// Whatever a client sends, it gets in only after a login, and it receives whole lines only.
        #[test]
        fn only_a_login_leads_inside(lines in proptest::collection::vec(
            "(CAP (LS 302|REQ :sasl|END)|NICK [a-z]{1,3}|USER a 0 \\* :b|PASS x|AUTHENTICATE (PLAIN|AGEAYg==|\\*)|JOIN #chat|PRIVMSG #chat :x|[A-Z]{1,6} \\PC{0,20})", 0..30)
        ) {
            let mut session = Session::default();
            for text in &lines {
                for act in told(&mut session, text) {
                    match act {
                        Act::Say(line) => prop_assert!(line.ends_with("\r\n") && line.len() <= 512 && line.matches('\n').count() == 1),
                        Act::LogIn(..) => drop(session.refused("no", 0)),
                        Act::Welcome | Act::Join | Act::Speak { .. } => prop_assert!(false, "it is inside"),
                        _ => {}
                    }
                }
                prop_assert!(!session.is_in());
            }
        }
    }
}
