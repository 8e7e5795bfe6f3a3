//! The room's door for IRC (RFC 2812, as far as its clients use it; IRCv3's SASL). `message` parses what clients send, `session`
//! decides what follows from it.

use plugin_api::prelude::*;
use plugin_api::{Door, Input, Transport, Zeroizing};

use crate::Chat;
use crate::message::{Message, line, lines, nick};
use crate::session::{Act, Means, ROOM, SERVER, Session, TARGETS};

/// One client.
pub(crate) struct Irc(Session);

/// A client in the room, or about to come in.
pub(crate) struct Window {
    /// The perspective's name.
    pub(crate) who: String,
    pub(crate) joined: bool,
    /// Whether it receives what it says itself.
    pub(crate) echo: bool,
    pub(crate) transport: Transport,
}

impl Window {
    /// Sends what somebody has said, to the room or to this client.
    pub(crate) fn heard(&self, who: &str, to: &str, text: &str, notice: bool) {
        let word = if notice { "NOTICE" } else { "PRIVMSG" };
        let head = format!(":{0}!{0}@{SERVER} {word} {to} :", nick(who));
        lines(&head, text).iter().for_each(|line| self.transport.write(line.as_bytes()));
    }

    /// Reports that somebody has entered the room, or left it.
    pub(crate) fn moved(&self, who: &str, word: &str) {
        self.transport.write(line(&format!(":{0}!{0}@{SERVER} {word}", nick(who))).as_bytes());
    }
}

impl Door for Irc {
    type Service = Chat;

    const LONGEST: usize = 8 << 10;

    fn opened(_: &Context<Chat>, _: &Transport) -> Result<Self> {
        Ok(Self(Session::default()))
    }

    async fn received(&mut self, context: &Context<Chat>, transport: &Transport, input: &mut Input) -> Result<()> {
        while let Some(end) = input.line_end().filter(|_| !transport.is_closed()) {
            // Other code has the room, and will take over this connection.
            if context.is_replaced() && self.0.has_logged_in() {
                return Ok(());
            }
            let text = Zeroizing::new(String::from_utf8_lossy(&input[..end]).into_owned());
            let (before, alone) = (self.0.clone(), input.len() == end);
            match self.line(&text, alone, context, transport).await {
                // Other code has the room by now and continues from here: with this line, or with the login, if this line has led
                // to one.
                Err(fault) if fault.is_reloaded() => {
                    if self.0.has_logged_in() && !before.has_logged_in() {
                        self.0.waits_outside();
                        input.take(end);
                    } else {
                        self.0 = before;
                    }
                    return Ok(());
                }
                done => done?,
            }
            input.take(end);
            // A client that asks for much must read it before more is done.
            transport.room().await;
        }
        Ok(())
    }

    fn idle(&mut self, _: &Context<Chat>, transport: &Transport) -> Result<()> {
        match self.0.idle() {
            Act::Say(line) => transport.write(line.as_bytes()),
            _ => transport.close(),
        }
        Ok(())
    }

    fn closed(self, context: &Context<Chat>, transport: &Transport) {
        if let Ok(chat) = context.service() {
            // No caller is writing to the service: this is called directly.
            let _ = chat.write(|chat| chat.leave(transport, "QUIT :gone"));
        }
    }

    fn freeze(&self) -> Result<Vec<u8>> {
        if !self.0.rests() {
            return Err(Fault::value("it is logging in"));
        }
        serde_json::to_vec(&self.0).map_err(Into::into)
    }

    fn thaw(context: &Context<Chat>, transport: &Transport, state: &[u8]) -> Result<Self> {
        let mut irc = Self(serde_json::from_slice(state)?);
        if irc.0.is_in() {
            irc.come_in(context, transport)?;
        } else if irc.0.comes_in() {
            irc.welcome(context, transport)?;
        }
        Ok(irc)
    }
}

/// The perspective of a login: the one with the identity's name, or the first.
fn perspective(login: &plugin_api::Login) -> Result<String> {
    let all = login.perspectives();
    let own = all.iter().find(|name| *name == login.identity()).or_else(|| all.first());
    own.cloned().ok_or_else(|| Fault::unauthorized("there is no key for this service"))
}

impl Irc {
    /// Serves a line. `alone`: no input has arrived behind it yet.
    async fn line(&mut self, text: &str, alone: bool, context: &Context<Chat>, transport: &Transport) -> Result<()> {
        let Some(message) = Message::read(text.trim_end_matches(['\r', '\n'])) else { return Ok(()) };
        let peer = transport.peer();
        let means = Means { start_tls: peer.can_start_tls(), certificate: peer.certificate().is_some() };
        let mut acts = self.0.line(&message, means);
        while !acts.is_empty() {
            let mut more = Vec::new();
            for act in acts {
                more.extend(self.act(act, alone, context, transport).await?);
            }
            acts = more;
        }
        Ok(())
    }

    /// Adds the client's window.
    fn come_in(&self, context: &Context<Chat>, transport: &Transport) -> Result<()> {
        let login = transport.login().ok_or_else(|| Fault::unauthorized("the login has ended"))?;
        let (who, joined, echo) = (perspective(&login)?, self.0.joined, self.0.echo);
        let window = Window { who, joined, echo, transport: transport.clone() };
        context.service()?.write(|chat| chat.windows.push(window))
    }

    fn welcome(&self, context: &Context<Chat>, transport: &Transport) -> Result<()> {
        self.come_in(context, transport)?;
        let own = self.0.nick();
        let say = |text: &str| transport.write(line(&format!(":{SERVER} {text}")).as_bytes());
        say(&format!("001 {own} :welcome to the chat, {own}"));
        say(&format!("002 {own} :this is {SERVER}"));
        say(&format!("003 {own} :it is one room, with many doors"));
        say(&format!("004 {own} {SERVER} 1 i nt"));
        say(&format!(
            "005 {own} CASEMAPPING=ascii CHANTYPES=# NICKLEN=64 CHANMODES=,,,nt TARGMAX=PRIVMSG:{TARGETS},NOTICE:{TARGETS} \
             :are supported by this server"
        ));
        say(&format!("422 {own} :there is no message of the day"));
        // A client that asked for another nickname learns its own.
        transport.write(line(&format!(":{own}!{own}@{SERVER} NICK :{own}")).as_bytes());
        Ok(())
    }

    /// Performs an act. Returns the acts that follow from it.
    async fn act(&mut self, act: Act, alone: bool, context: &Context<Chat>, transport: &Transport) -> Result<Vec<Act>> {
        let own = self.0.nick().to_owned();
        let numeric = |number: u16, text: &str| {
            transport.write(line(&format!(":{SERVER} {number:03} {own} {text}")).as_bytes());
        };
        match act {
            Act::Say(line) => transport.write(line.as_bytes()),
            Act::LogIn(name, password) => {
                return Ok(match context.authorizer().password(transport, name, password.as_str()).await {
                    Ok(login) => self.0.logged_in(&nick(&perspective(&login)?)),
                    Err(refused) => self.0.refused(refused.message(), refused.wait()),
                });
            }
            Act::LogInByCertificate(name) => {
                return Ok(match context.authorizer().certificate(transport, name).await {
                    Ok(login) => self.0.logged_in(&nick(&perspective(&login)?)),
                    Err(refused) => self.0.refused(refused.message(), refused.wait()),
                });
            }
            Act::Welcome => self.welcome(context, transport)?,
            Act::Join => {
                context.service()?.write(|chat| chat.join(transport))?;
                numeric(332, &format!("{ROOM} :one room, many doors"));
                return Ok(vec![Act::Names]);
            }
            Act::Part(why) => context.service()?.write(|chat| chat.part(transport, &why))?,
            Act::Speak { to, text, notice } => {
                let reached = context.service()?.read(|chat| chat.spoken(transport, &to, &text, notice))?;
                if !reached && !notice {
                    numeric(401, &format!("{to} :nobody here has this name"));
                }
            }
            Act::Names => {
                let names: Vec<String> = context.service()?.read(Chat::names)?.iter().map(|name| nick(name)).collect();
                let head = format!(":{SERVER} 353 {own} = {ROOM} :");
                lines(&head, &names.join(" ")).iter().for_each(|line| transport.write(line.as_bytes()));
                numeric(366, &format!("{ROOM} :are here"));
            }
            Act::Who => {
                for name in context.service()?.read(Chat::names)? {
                    numeric(352, &format!("{ROOM} {0} {SERVER} {SERVER} {0} H :0 {0}", nick(&name)));
                }
                numeric(315, &format!("{ROOM} :are here"));
            }
            Act::Whois(who) => self.whois(&who, context, numeric)?,
            Act::IsOn(names) => {
                let here = context.service()?.read(Chat::people)?;
                let here = |name: &&String| here.iter().any(|one| nick(one).eq_ignore_ascii_case(name));
                let on: Vec<String> = names.iter().filter(here).cloned().collect();
                numeric(303, &format!(":{}", on.join(" ")));
            }
            Act::Secure => self.secure(alone, transport, numeric).await?,
            Act::Quit(why) => {
                transport.write(line(&format!("ERROR :{why}")).as_bytes());
                transport.close();
            }
        }
        Ok(Vec::new())
    }

    fn whois(&self, who: &str, context: &Context<Chat>, numeric: impl Fn(u16, &str)) -> Result<()> {
        let found = context.service()?.read(|chat| {
            let person = chat.people().into_iter().find(|one| nick(one).eq_ignore_ascii_case(who));
            person.map(|person| (chat.names().contains(&person), nick(&person)))
        })?;
        match found {
            None => numeric(401, &format!("{who} :nobody here has this name")),
            Some((in_room, name)) => {
                numeric(311, &format!("{name} {name} {SERVER} * :{name}"));
                if in_room {
                    numeric(319, &format!("{name} :{ROOM}"));
                }
            }
        }
        numeric(318, &format!("{who} :that is all"));
        Ok(())
    }

    async fn secure(&mut self, alone: bool, transport: &Transport, numeric: impl Fn(u16, &str)) -> Result<()> {
        if !alone {
            // Plaintext behind STARTTLS would look as if it had come by TLS.
            return Err(Fault::value("more input follows STARTTLS"));
        }
        numeric(670, ":begin the TLS handshake");
        transport.start_tls().await?;
        // What came in plaintext may be somebody else's.
        self.0 = Session::default();
        Ok(())
    }
}
