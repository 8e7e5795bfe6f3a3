//! The chat's door, tested with IRC clients that others have written: ii, irssi, weechat, and Twisted's own.

use std::net::SocketAddr;
use std::path::Path;

use system_tests::build;
use system_tests::host::{TestHome, TestHost, put};
use system_tests::irc::{ii, irssi, twisted, weechat};
use system_tests::lines::Lines;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn host() -> (TestHost, SocketAddr) {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.chat.listen]\nirc = \"127.0.0.1:0\"\n"));
    for name in ["judith", "ines", "ivo", "tess", "walt"] {
        home.identity(name, PASSWORD, &["chat"]);
    }
    home.install("chat");
    let mut host = home.start();
    let line = host.wait_for("serving irc on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    (host, address)
}

fn replace(plugins: &Path) {
    let next = plugins.join(".next");
    put(&build::library("chat"), &next);
    let mut bytes = std::fs::read(&next).expect("it is there");
    bytes.push(0);
    std::fs::write(&next, bytes).expect("it can be written");
    std::fs::rename(next, plugins.join("libchat.so")).expect("it can be put in place");
}

#[test]
fn clients_of_irc_talk_in_one_room_while_its_code_is_replaced() {
    let (host, address) = host();
    let mut judith = Lines::irc(address, "judith", PASSWORD);
    let mut clients = [
        ("ivo", ii(address, "ivo", PASSWORD)),
        ("ines", irssi(address, "ines", PASSWORD)),
        ("tess", twisted(address, "tess", PASSWORD)),
        ("walt", weechat(address, "walt", PASSWORD)),
    ];
    let mut to_come: Vec<&str> = clients.iter().map(|(name, _)| *name).collect();
    while !to_come.is_empty() {
        let line = judith.until("JOIN #chat");
        to_come.retain(|name| !line.starts_with(&format!(":{name}!")));
    }
    for turn in 0..3 {
        judith.send(&format!("PRIVMSG #chat :{turn} from judith"));
        clients.iter().for_each(|(_, client)| client.hears(&format!("{turn} from judith")));
        for at in 0..clients.len() {
            let (name, client) = &mut clients[at];
            let text = format!("{turn} from {name}");
            client.say(&text);
            assert_eq!(judith.line(), format!(":{name}!{name}@credhost PRIVMSG #chat :{text}"));
            clients.iter().enumerate().filter(|(other, _)| *other != at).for_each(|(_, (_, other))| other.hears(&text));
        }
        replace(&host.home.plugins());
        host.home.run(&["service", "reload", "chat"], "");
    }
    for (name, _) in &clients {
        host.home.run(&["identity", "disable", name], "");
        let line = judith.line();
        assert!(line.starts_with(&format!(":{name}!")) && line.contains("QUIT"), "{line}");
    }
    clients[2].1.hears("lost");
    assert_eq!(host.home.run(&["session", "list"], "").matches("chat:irc").count(), 1);
}
