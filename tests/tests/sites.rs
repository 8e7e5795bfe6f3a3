//! Sites behind a proxy that asks who somebody is, and pages as a browser shows them. Judged by nginx, Caddy, Traefik,
//! Chromium, curl and PyJWT.

use std::net::SocketAddr;
use std::process::Command;

use system_tests::host::{TestHome, TestHost};
use system_tests::sites::{caddy, nginx, site, traefik};
use system_tests::web::{Browser, Page};
use system_tests::{debian, python};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// Starts a host whose service web listens on a Unix socket, for alice. Returns its folder as well.
fn host() -> (TestHost, tempfile::TempDir) {
    let (host, folder, _) = host_by_tcp("");
    (host, folder)
}

/// The same with one more listener, whose address it returns as well.
fn host_by_tcp(more: &str) -> (TestHost, tempfile::TempDir, Option<SocketAddr>) {
    let (home, folder) = (TestHome::new(), tempfile::tempdir().expect("a folder"));
    home.make();
    let by_unix = format!("{{ address = \"unix:{}/web\", proxies = [\"unix\"] }}", folder.path().display());
    let listen = format!("http = [{by_unix}{more}]");
    let section = format!("[service.web]\nmay = [\"attach\"]\npath = \"/account\"\n[service.web.listen]\n{listen}\n");
    home.configure(|text| format!("{text}\n{section}"));
    home.identity("alice", PASSWORD, &["web", "todo"]);
    ["web", "todo"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    host.wait_for("libweb.so serves");
    let address = (!more.is_empty()).then(|| host.wait_for("serving http on 127"));
    let address = address.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok()));
    (host, folder, address)
}

/// What the reader of a page sends: that they accept HTML, and lies about who they are.
const SAID: [(&str, &str); 6] = [
    ("Accept", "text/html"),
    ("Remote-User", "root"),
    ("Remote_User", "root"),
    ("Remote-Identity", "root"),
    ("Credhost-Assertion", "root"),
    ("X-Forwarded-For", "6.6.6.6"),
];

fn read(browser: &mut Browser, path: &str) -> Page {
    browser.send("GET", path, &SAID, "")
}

/// Alice reads a page of a site behind a proxy.
fn she_reads(host: &TestHost, address: SocketAddr) -> Page {
    let mut alice = Browser::new(address);
    let page = read(&mut alice, "/wiki?page=a&b=%26c");
    let location = page.header("location").to_owned();
    assert_eq!(page.status, 302, "{}", page.body);
    let wanted =
        format!("/account/sign-in?to=http%3A%2F%2F127.0.0.1%3A{}%2Fwiki%3Fpage%3Da%26b%3D%2526c", address.port());
    assert_eq!(location, wanted);
    assert!(alice.get(&location).body.contains("Sign in to"), "the form");
    let to = format!("http://{address}/wiki?page=a&b=%26c");
    let page = alice.post("/account/sign-in", &[("name", "alice"), ("password", PASSWORD), ("to", &to)]);
    assert_eq!((page.status, page.header("location")), (303, to.as_str()), "{}", page.body);
    alice.cookies.extend([("own".to_owned(), "1".to_owned()), ("other".to_owned(), "2".to_owned())]);
    let page = read(&mut alice, "/wiki?page=a&b=%26c");
    assert_eq!(page.status, 200);
    let told = page.body.to_ascii_lowercase();
    assert!(told.contains("get /wiki?page=a&b=%26c") && told.contains("remote-user: alice"), "{}", page.body);
    assert!(!told.contains("root"), "what she says of herself goes nowhere: {}", page.body);
    // Her session cookie does not get there either: the site gets its own cookies, and no others.
    assert!(!told.contains("credhost_") && told.contains("cookie: other=2; own=1"), "{}", page.body);
    // Access needs a key for that service. The key is removed, and added again.
    host.home.run(&["key", "remove", "alice", "todo"], "");
    assert_eq!(read(&mut alice, "/wiki").status, 403);
    host.home.run(&["key", "add", "alice", "todo"], "");
    // No request is lost while the code is replaced.
    for _ in 0..10 {
        host.home.run(&["service", "reload", "web"], "");
        assert_eq!(read(&mut alice, "/wiki").status, 200);
    }
    host.home.run(&["identity", "disable", "alice"], "");
    assert_eq!(read(&mut alice, "/wiki").status, 302, "at once");
    page
}

#[test]
fn nginx_admits_signed_in_users() {
    let (host, folder) = host();
    let nginx = nginx(folder.path(), site());
    let page = she_reads(&host, nginx.address);
    let assertion = page.body.lines().find_map(|line| line.strip_prefix("Credhost-Assertion: ")).expect("an assertion");
    // A site that does not trust the proxy's word can verify the assertion.
    let curl = Command::new("curl").args(["-s", &format!("http://{}/account/keys.json", nginx.address)]).output();
    let keys = String::from_utf8(curl.expect("curl runs").stdout).unwrap();
    let said = python::chromium("verify.py", &[&keys, assertion, "todo"]);
    assert_eq!(said.trim(), "alice alice credhost");
}

#[test]
fn caddy_admits_signed_in_users() {
    let (host, folder) = host();
    let caddy = caddy(folder.path(), site());
    she_reads(&host, caddy.address);
}

#[test]
fn traefik_admits_signed_in_users() {
    let (host, folder, web) = host_by_tcp(", { address = \"127.0.0.1:0\", proxies = [\"127.0.0.1\"] }");
    let traefik = traefik(folder.path(), site(), web.expect("it says where"));
    she_reads(&host, traefik.address);
}

#[test]
fn chromium_shows_readable_pages_and_blocks_other_sites() {
    let home = TestHome::new();
    home.make();
    let listen = "[service.web.listen]\nhttp = \"127.0.0.1:0\"\n";
    home.configure(|text| format!("{text}\n[service.web]\nmay = [\"attach\", \"credentials\"]\n{listen}"));
    home.identity("alice", PASSWORD, &["web", "todo", "todo/work"]);
    home.install("web");
    let mut host = home.start();
    let line = host.wait_for("serving http on ");
    let address: SocketAddr = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let (chromium, driver) =
        (debian::program("chromium", "chromium"), debian::program("chromedriver", "chromium-driver"));
    // The pages are kept, to be looked at.
    let folder = system_tests::target().join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    let (chromium, driver, folder) =
        (chromium.display().to_string(), driver.display().to_string(), folder.display().to_string());
    // A browser treats this machine like a site with TLS only under this name.
    let url = format!("http://localhost:{}/", address.port());
    python::chromium("sign_in.py", &[&chromium, &driver, &url, "alice", PASSWORD, &folder]);
}
