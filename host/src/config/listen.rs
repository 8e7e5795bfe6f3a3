//! `[service.NAME.listen]`: the addresses of services' own doors.

mod section;

use std::net::ToSocketAddrs;

use self::section::Section;
use super::Settings;
use super::confined::{ALLOW, ISOLATION, MOST};
use super::grants::{Grants, MAY};
use super::listener::ListenerSettings;
use super::marks::Marks;

/// The key in a service's section that is for the host.
const LISTEN: &str = "listen";

impl ListenerSettings {
    /// Creates a service's listener at this address, written as in credhost.toml.
    ///
    /// # Errors
    /// If the address is invalid.
    pub fn at(service: &str, name: &str, address: &str) -> Result<Self, String> {
        Section { address: address.to_owned(), ..Section::default() }.read(service, name, Grants::default())
    }
}

/// Returns the service's own settings, without those for the host.
#[must_use]
pub fn own(section: &serde_json::Map<String, serde_json::Value>) -> serde_json::Map<String, serde_json::Value> {
    let hosts = |(key, value): &(&String, &serde_json::Value)| {
        let of_one = matches!(key.as_str(), MAY | ISOLATION | ALLOW);
        of_one || matches!(key.as_str(), LISTEN | MOST) && value.is_object()
    };
    section.iter().filter(|pair| !hosts(pair)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Reads all listeners of services.
///
/// # Errors
/// If one is invalid: the reason, with its place.
pub fn listeners(settings: &Settings) -> Result<Vec<ListenerSettings>, String> {
    let mut all: Vec<ListenerSettings> = Vec::new();
    for (service, section) in &settings.service {
        let grants = Grants::of(section).map_err(|why| format!("[service.{service}] {MAY}: {why}"))?;
        let Some(serde_json::Value::Object(listen)) = section.get(LISTEN) else { continue };
        let tls = |key: &str| listen.get(key).and_then(serde_json::Value::as_bool);
        let (over, start) = (tls("tls").unwrap_or(false), tls("starttls").unwrap_or(false));
        // Settings for all listeners of a service stand beside their names.
        let of_all = |key: &str, value: &serde_json::Value| matches!(key, "tls" | "starttls") && value.is_boolean();
        let named = listen.iter().filter(|(key, value)| !of_all(key, value));
        // One listener has one address, or several.
        let each = named.flat_map(|(name, value)| match value {
            serde_json::Value::Array(values) => values.iter().map(|value| (name, value)).collect(),
            value => vec![(name, value)],
        });
        for (name, value) in each {
            let at = |why: &str| format!("[service.{service}.listen] {name}: {why}");
            let section = match value {
                serde_json::Value::String(address) => {
                    Section { address: address.clone(), tls: over, starttls: start, ..Section::default() }
                }
                serde_json::Value::Object(_) => {
                    let mut section: Section = serde_json::from_value(value.clone())
                        .map_err(|error| at(&crate::plain::words(&error.to_string())))?;
                    (section.tls, section.starttls) = (section.tls || over, section.starttls || start);
                    section
                }
                _ => {
                    return Err(at(
                        "expected an address, such as \"127.0.0.1:6667\", a table with one, or a list of these",
                    ));
                }
            };
            let read = section.read(service, name, grants).map_err(|why| at(&why))?;
            if let Some((what, other)) = all.iter().find_map(|other| Some((read.differs(other)?, other))) {
                return Err(at(&format!(
                    "{what}: it shares one socket with {}: use the same value for both",
                    other.place()
                )));
            }
            if let Some(why) = all.iter().find_map(|other| read.overlaps(other)) {
                return Err(at(&why));
            }
            all.push(read);
        }
    }
    Ok(all)
}

/// Checks that connections of the host's own listeners can be distinguished from others at the same address.
///
/// # Errors
/// If they cannot be: which one, with its place.
pub fn apart(of_host: &[ListenerSettings], of_services: &[ListenerSettings]) -> Result<(), String> {
    for (at, one) in of_host.iter().enumerate() {
        let mut others = of_host.iter().skip(at + 1).chain(of_services);
        if let Some(why) = others.find_map(|other| one.overlaps(other)) {
            return Err(format!("{}: {why}", one.place()));
        }
        // The host's own listeners have their own setting for trusted proxies.
        let of_service = |other: &&ListenerSettings| other.shares(&one.address) && !other.proxy_protocol.is_empty();
        if let Some(other) = of_services.iter().find(of_service) {
            let why = "proxy_protocol: where Perspective Broker has the same address, use [pb] proxies instead";
            return Err(format!("{}: {why}", other.place()));
        }
    }
    Ok(())
}

/// The host's own listeners whose addresses are valid.
#[must_use]
pub fn of_host(settings: &Settings) -> Vec<ListenerSettings> {
    let sections = settings.multiservice.iter().map(|(name, section)| {
        (format!("[multiservice.{name}]"), section.listen.as_ref(), section.listen_tls.as_ref())
    });
    let pb = ("[pb]".to_owned(), Some(&settings.pb.listen), settings.pb.listen_tls.as_ref());
    let both = std::iter::once(pb).chain(sections).flat_map(|(place, listen, listen_tls)| {
        let clear = listen.map(|address| (format!("{place} listen"), address, None));
        let tls = listen_tls.map(|tls| (format!("{place} listen_tls"), &tls.address, Some(tls.marks.clone())));
        clear.into_iter().chain(tls)
    });
    let read = |(place, shown, tls): (String, &String, Option<Marks>)| {
        let addresses = shown.to_socket_addrs().ok()?.collect();
        Some(ListenerSettings::of_host(&place, shown, addresses, tls))
    };
    both.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::listener::Address;

    fn read(text: &str) -> Result<Vec<ListenerSettings>, String> {
        listeners(&toml_edit::de::from_str(text).unwrap())
    }

    #[test]
    fn a_listener_is_an_address_or_a_table_with_one() {
        let all = read(
            "[service.chat]\ntitle = \"x\"\n[service.chat.listen]\nirc = \"127.0.0.1:6667\"\n\
             ircs = { address = \"0.0.0.0:6697\", tls = true, connections = 5, login = \"1 min\" }\n\
             local = \"unix:/run/chat.sock\"\nother = \"systemd:chat\"\n",
        )
        .unwrap();
        let of = |name: &str| all.iter().find(|one| one.name == name).unwrap().clone();
        assert_eq!(of("irc").address, Address::Tcp(vec!["127.0.0.1:6667".parse().unwrap()]));
        assert_eq!((of("ircs").tls, of("ircs").connections, of("ircs").login.as_secs()), (true, 5, 60));
        assert_eq!(of("local").address, Address::Unix("/run/chat.sock".into()));
        assert_eq!(of("other").address, Address::Systemd("chat".to_owned()));
    }

    #[test]
    fn a_listener_may_have_several_addresses() {
        let all =
            read("[service.chat.listen]\nirc = [\"127.0.0.1:6667\", { address = \"0.0.0.0:6697\", tls = true }]\n")
                .unwrap();
        assert_eq!(
            all.iter().map(|one| (one.name.as_str(), one.tls)).collect::<Vec<_>>(),
            [("irc", false), ("irc", true)]
        );
    }

    #[test]
    fn invalid_listeners_are_refused_with_their_place() {
        let all = [
            ("irc = 6667", "expected an address"),
            ("irc = \"6667\"", "is not an address"),
            ("irc = \"unix:chat.sock\"", "absolute path"),
            ("irc = \"0.0.0.0:6667\"", "others can reach"),
            ("irc = \"systemd:\"", "is not an address"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, starttls = true }", "exclude each other"),
            ("irc = { address = \"127.0.0.1:1\", conections = 1 }", "conections"),
            ("irc = { address = \"127.0.0.1:1\", connections = 0 }", "at least 1"),
            ("irc = { address = \"127.0.0.1:1\", login = \"soon\" }", "login"),
            ("irc = { address = \"127.0.0.1:1\", login = \"0 s\" }", "range is 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", login = \"500000000 years\" }", "range is 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", idle = \"1 min\", starttls = true }", "idle cannot be combined"),
            ("irc = \"127.0.0.1:1\"\nother = \"127.0.0.1:1\"", "is also the address of [service.chat.listen] irc"),
            ("irc = \"127.0.0.1:1\"\nother = { address = \"0.0.0.0:1\", plaintext = true }", "overlap"),
            ("irc = \"[::1]:1\"\nother = { address = \"[::]:1\", tls = true }", "overlap"),
            (
                "irc = { address = \"127.0.0.1:1\", tls = true }\nother = { address = \"127.0.0.1:1\", tls = true }",
                "names = [",
            ),
            ("irc = { address = \"127.0.0.1:1\", names = [\"a.org\"] }", "set tls = true"),
            ("irc = { address = \"127.0.0.1:1\", alpn = [\"irc\"], starttls = true }", "with starttls"),
            ("irc = { address = \"127.0.0.1:1\", begins = [\"SSH-\"], tls = true }", "in the clear"),
            ("irc = { address = \"127.0.0.1:1\", certificates = true }", "needs TLS"),
            ("irc = { address = \"127.0.0.1:1\", begins = [\"\"] }", "1 to 64 bytes"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, names = [\"a b\"] }", "not a host name"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, names = [\"a.org.\"] }", "not a host name"),
            ("irc = { address = \"127.0.0.1:1\", tls = true, alpn = [\"\"] }", "not a protocol name"),
            ("irc = { address = \"127.0.0.1:1\", grace = \"for ever\" }", "grace"),
            (
                "irc = { address = \"unix:/run/x\", begins = [\"A\"] }\nother = { address = \"unix:/run/x\", mode = \"0660\" }",
                "shares one socket with [service.chat.listen] irc",
            ),
            (
                "irc = { address = \"127.0.0.1:1\", proxy_protocol = [\"::1\"], proxies = [\"::1\"] }",
                "exclude each other: a connection",
            ),
            ("irc = { address = \"unix:/run/x\", proxy_protocol = [\"10.0.0.1\"] }", "for TCP"),
            (
                "irc = { address = \"127.0.0.1:1\", proxy_protocol = [\"nginx\"] }",
                "proxy_protocol: \"nginx\" is neither",
            ),
            (
                "irc = { address = \"127.0.0.1:1\", begins = [\"A\"] }\nother = { address = \"127.0.0.1:1\", proxy_protocol = [\"::1\"] }",
                "proxy_protocol: it shares one socket",
            ),
            ("irc = { address = \"unix:/run/x\", mode = \"rw\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = \"0999\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = \"4660\" }", "as for chmod"),
            ("irc = { address = \"unix:/run/x\", mode = 660 }", "a text is expected"),
            ("irc = { address = \"127.0.0.1:1\", mode = \"0660\" }", "for a Unix socket"),
            ("irc = { address = \"127.0.0.1:1\", stalled = \"2 h\" }", "range is 1s to 1h"),
            ("irc = { address = \"127.0.0.1:1\", message = 5 }", "a text is expected"),
            ("irc = { address = \"127.0.0.1:1\", rate = 0 }", "bytes a second"),
            ("irc = { address = \"127.0.0.1:1\", proxies = [\"nginx\"] }", "neither an address nor a network"),
        ];
        for (line, wanted) in all {
            let said = read(&format!("[service.chat.listen]\n{line}\n")).unwrap_err();
            assert!(said.contains("[service.chat.listen]") && said.contains(wanted), "{line}: {said}");
        }
    }

    #[test]
    fn host_and_service_listeners_on_one_address_are_told_apart() {
        let apart = |pb: &str, service: &str| {
            let text = format!("{pb}\n[service.chat.listen]\nirc = {service}\n");
            let settings: Settings = toml_edit::de::from_str(&text).unwrap();
            super::apart(&of_host(&settings), &listeners(&settings).unwrap())
        };
        let tls = |marks: &str| format!("{{ address = \"127.0.0.1:1\", tls = true{marks} }}");
        let pb = |marks: &str| format!("[pb]\nlisten_tls = {{ address = \"127.0.0.1:1\"{marks} }}");
        for (pb, service, place) in [
            ("[pb]\nlisten = \"127.0.0.1:1\"".to_owned(), "\"127.0.0.1:1\"".to_owned(), "[pb] listen"),
            ("[pb]\nlisten_tls = \"127.0.0.1:1\"".to_owned(), tls(""), "[pb] listen_tls"),
            (pb(", names = [\"a.org\"]"), tls(", names = [\"A.org\"]"), "[pb] listen_tls"),
            (pb(""), tls(""), "[pb] listen_tls"),
            (
                "[multiservice.games]\nlisten = \"127.0.0.1:1\"".to_owned(),
                "\"127.0.0.1:1\"".to_owned(),
                "[multiservice.games] listen",
            ),
        ] {
            let why = apart(&pb, &service).unwrap_err();
            assert!(why.starts_with(place) && why.contains("[service.chat.listen] irc"), "{pb} {service}: {why}");
        }
        let behind = tls(", proxy_protocol = [\"10.0.0.1\"]");
        let why = apart("[pb]\nlisten = \"127.0.0.1:1\"", &behind).unwrap_err();
        assert!(why.starts_with("[service.chat.listen] irc: proxy_protocol") && why.contains("[pb] proxies"), "{why}");
        for (pb, service) in [
            ("[pb]\nlisten = \"127.0.0.1:2\"".to_owned(), behind),
            ("[pb]\nlisten = \"127.0.0.1:1\"".to_owned(), tls("")),
            (
                "[pb]\nlisten = \"127.0.0.1:1\"".to_owned(),
                "{ address = \"127.0.0.1:1\", begins = [\"SSH-\"] }".to_owned(),
            ),
            (pb(", names = [\"a.org\"]"), tls("")),
            (pb(", alpn = [\"pb\"]"), tls(", names = [\"a.org\"]")),
            ("[pb]\nlisten_tls = \"127.0.0.1:2\"".to_owned(), tls("")),
        ] {
            assert_eq!(apart(&pb, &service), Ok(()), "{pb} {service}");
        }
        let two = "[pb]\nlisten_tls = \"127.0.0.1:1\"\n[multiservice.a]\nlisten_tls = \"127.0.0.1:1\"\n";
        let settings: Settings = toml_edit::de::from_str(two).unwrap();
        assert!(super::apart(&of_host(&settings), &[]).is_err());
        for wrong in ["{ address = \"127.0.0.1:1\", begins = [\"x\"] }", "{ names = [\"a.org\"] }", "5"] {
            let text = format!("[pb]\nlisten_tls = {wrong}\n");
            let said = toml_edit::de::from_str::<Settings>(&text).unwrap_err().to_string();
            assert!(said.contains("listen_tls"), "{said}");
        }
    }

    #[test]
    fn only_configured_sources_are_proxies() {
        let all =
            read("[service.web.listen]\nhttp = { address = \"127.0.0.1:1\", proxies = [\"10.0.0.0/8\", \"::1\"] }\n")
                .unwrap();
        let is = |source: &str| all[0].is_proxy(Some(source.parse().unwrap()));
        assert!(is("10.1.2.3") && is("::ffff:10.1.2.3") && is("::1"));
        assert!(!is("11.0.0.1") && !is("127.0.0.1") && !all[0].is_proxy(None));
        let all = read("[service.web.listen]\nhttp = { address = \"unix:/run/x\", proxies = [\"unix\"] }\n").unwrap();
        assert!(all[0].is_proxy(None) && !all[0].is_proxy(Some("127.0.0.1".parse().unwrap())));
    }

    #[test]
    fn a_service_has_the_grants_that_the_operator_gives_it() {
        let listener = |may: &str, listen: &str| {
            let text = format!("[service.ssh]\n{may}\n[service.ssh.listen]\nssh = {listen}\n");
            read(&text).map(|all| all[0].clone())
        };
        let near = "\"127.0.0.1:2222\"";
        let grants = listener("may = [\"attach\", \"vouch\"]", near).unwrap().grants;
        assert_eq!(grants, Grants { attach: true, vouch: true, credentials: false });
        assert_eq!(listener("", near).unwrap().grants, Grants::default());
        for (may, wanted) in [
            ("[\"fly\"]", "\"fly\" is not a permission"),
            ("\"attach\"", "a list"),
            ("5", "a list"),
            ("[5]", "5 is not a permission"),
        ] {
            let said = listener(&format!("may = {may}"), near).unwrap_err();
            assert!(said.starts_with("[service.ssh] may: ") && said.contains(wanted), "{may}: {said}");
        }
        // A service's permissions do not cover how it may listen: that is up to the listener.
        let all = listener("may = [\"vouch\"]", "\"0.0.0.0:2222\"").unwrap_err();
        assert!(all.contains("others can reach"), "{all}");
        assert!(listener("", "{ address = \"0.0.0.0:2222\", encrypted = true }").unwrap().encrypted);
    }

    #[test]
    fn a_service_receives_only_its_own_settings() {
        let settings: Settings = toml_edit::de::from_str(
            "[service.a]\nx = 1\nmay = [\"attach\"]\n[service.a.listen]\nirc = \"127.0.0.1:1\"\n[service.b]\nlisten = \"own\"\n",
        )
        .unwrap();
        assert_eq!(own(&settings.service["a"]).keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(own(&settings.service["b"]).len(), 1, "a text of that name is the service's own");
    }
}
