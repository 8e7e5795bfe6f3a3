//! A host with a door of each kind: the chat's IRC, the scores' pages, SSH, and Perspective Broker.

use std::net::SocketAddr;

use crate::host::{TestHome, TestHost};

/// A running host. Alice has a password, a token, and the keys to all of its services; bob has the key to the chat.
pub struct EveryDoor {
    pub host: TestHost,
    pub irc: SocketAddr,
    pub ssh: SocketAddr,
    pub http: SocketAddr,
    pub token: String,
}

impl EveryDoor {
    /// Starts a host with these services, which must include chat, scores and ssh. It allows 20,000 connections from one address.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn open(services: &[&str], password: &str) -> Self {
        let home = TestHome::new();
        home.make();
        let many = "address = \"127.0.0.1:0\", connections = 20000, per_source = 20000";
        home.configure(|text| {
            format!(
                "{text}\n[limits]\nconnections = 20000\nper_source = 20000\n\
                 [service.chat.listen]\nirc = {{ {many} }}\n[service.scores.listen]\nhttp = {{ {many} }}\n\
                 [service.ssh]\nmay = [\"attach\", \"vouch\"]\n[service.ssh.listen]\nssh = {{ {many}, encrypted = true }}\n"
            )
        });
        home.identity("alice", password, services);
        home.identity("bob", password, &["chat"]);
        let token = home.run(&["token", "new", "alice"], "");
        let token = token.split_whitespace().find(|word| word.starts_with("credhost_")).expect("a token").to_owned();
        services.iter().for_each(|service| home.install(service));
        let mut host = home.start_with(&[], &[("CREDHOST_LOG", "info")]);
        let [irc, http, ssh] = ["irc", "http", "ssh"].map(|door| {
            let line = host.wait_for(&format!("serving {door} on 127"));
            line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
        });
        Self { host, irc, ssh, http, token }
    }
}
