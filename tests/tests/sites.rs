//! Sites behind a proxy that asks who somebody is, and pages as a browser shows them: judged by nginx, Caddy, Chromium, curl
//! and PyJWT.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system_tests::host::{TestHome, TestHost};
use system_tests::web::{Browser, Page};
use system_tests::{debian, python};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// A host whose service web is reached by a Unix socket, for alice; and its folder.
fn host() -> (TestHost, tempfile::TempDir) {
    let (home, folder) = (TestHome::new(), tempfile::tempdir().expect("a folder"));
    home.make();
    let listen = format!("http = {{ address = \"unix:{}/web\", proxies = [\"unix\"] }}", folder.path().display());
    let section = format!("[service.web]\nmay = [\"attach\"]\npath = \"/account\"\n[service.web.listen]\n{listen}\n");
    home.configure(|text| format!("{text}\n{section}"));
    home.identity("alice", PASSWORD, &["web", "todo"]);
    ["web", "todo"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    host.wait_for("libweb.so serves");
    (host, folder)
}

/// A site that shows what it is told by who passes a request on.
fn site() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines().map_while(Result::ok);
                let told: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
                let told = told.join("\n");
                let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len());
                // The proxy may have gone.
                let _ = (&stream).write_all(answer.as_bytes());
            });
        }
    });
    address
}

/// A proxy that runs.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a proxy at a port that is free: neither of them can say which it has been given, so it is chosen beforehand, and another
/// if somebody else was quicker.
fn proxy(start: impl Fn(SocketAddr) -> Command) -> Proxy {
    for _ in 0..5 {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let mut child = start(address).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if TcpStream::connect(address).is_ok() {
                return Proxy { child, address };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    panic!("the proxy does not start");
}

/// nginx, as the guide has it, in front of this site.
fn nginx(folder: &Path, site: SocketAddr) -> Proxy {
    let program = debian::program("nginx", "nginx-light");
    proxy(|address| {
        let (here, temporary) =
            (folder.display(), |name: &str| format!("{name}_temp_path {}/{name};", folder.display()));
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temporary).join("\n");
        let config = format!(
            "daemon off; master_process off; pid {here}/pid; error_log {here}/errors;\n\
             events {{}}\n\
             http {{\n\
               access_log off; {temporary}\n\
               map $http_cookie $others {{\n\
                 default $http_cookie;\n\
                 \"~^(?<before>.*?)__Host-credhost=[^;]*(; )?(?<after>.*)$\" $before$after;\n\
               }}\n\
               upstream credhost {{ server unix:{here}/web; keepalive 8; }}\n\
               server {{\n\
                 listen {address};\n\
                 proxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\";\n\
                 proxy_set_header Host $http_host;\n\
                 proxy_set_header X-Forwarded-For $remote_addr;\n\
                 proxy_set_header X-Forwarded-Proto $scheme;\n\
                 proxy_set_header X-Forwarded-Host $http_host;\n\
                 location /account/ {{ proxy_pass http://credhost; }}\n\
                 location / {{\n\
                   auth_request /who;\n\
                   auth_request_set $who $upstream_http_remote_user;\n\
                   auth_request_set $assertion $upstream_http_credhost_assertion;\n\
                   error_page 401 = @sign_in;\n\
                   proxy_set_header Remote-User $who;\n\
                   proxy_set_header Remote-Identity \"\";\n\
                   proxy_set_header Credhost-Assertion $assertion;\n\
                   proxy_set_header Connection \"\";\n\
                   proxy_set_header Cookie $others;\n\
                   proxy_pass http://{site};\n\
                 }}\n\
                 location = /who {{\n\
                   internal;\n\
                   proxy_pass http://credhost/account/auth/todo;\n\
                   proxy_pass_request_body off;\n\
                   proxy_set_header Content-Length \"\";\n\
                   proxy_set_header Connection \"\";\n\
                   proxy_set_header Host $http_host;\n\
                   proxy_set_header X-Forwarded-For $remote_addr;\n\
                   proxy_set_header X-Forwarded-Uri \"\";\n\
                 }}\n\
                 location @sign_in {{\n\
                   proxy_pass http://credhost;\n\
                   rewrite ^ /account/auth break;\n\
                   proxy_set_header Connection \"\";\n\
                   proxy_set_header Host $http_host;\n\
                   proxy_set_header X-Forwarded-For $remote_addr;\n\
                   proxy_set_header X-Forwarded-Proto $scheme;\n\
                   proxy_set_header X-Forwarded-Host $http_host;\n\
                   proxy_set_header X-Forwarded-Method $request_method;\n\
                   proxy_set_header X-Forwarded-Uri $request_uri;\n\
                 }}\n\
               }}\n\
             }}\n"
        );
        std::fs::write(folder.join("nginx.conf"), config).expect("it can be written");
        let mut command = Command::new(&program);
        command.arg("-c").arg(folder.join("nginx.conf")).arg("-p").arg(folder);
        command
    })
}

/// Caddy, in front of this site.
fn caddy(folder: &Path, site: SocketAddr) -> Proxy {
    let program = debian::program("caddy", "caddy");
    proxy(|address| {
        let (here, port) = (folder.display(), address.port());
        let config = format!(
            "{{\n  admin off\n  auto_https off\n}}\n\
             http://127.0.0.1:{port} {{\n\
               bind 127.0.0.1\n\
               handle /account/* {{\n    reverse_proxy unix/{here}/web\n  }}\n\
               handle {{\n\
                 request_header -Remote-Identity\n\
                 request_header -Remote_User\n\
                 forward_auth unix/{here}/web {{\n\
                   uri /account/auth/todo\n\
                   copy_headers Remote-User Credhost-Assertion\n\
                 }}\n\
                 request_header Cookie \"^(.*?)__Host-credhost=[^;]*(?:; )?(.*)$\" \"$1$2\"\n\
                 reverse_proxy {site}\n\
               }}\n\
             }}\n"
        );
        std::fs::write(folder.join("Caddyfile"), config).expect("it can be written");
        let mut command = Command::new(&program);
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(folder.join("Caddyfile")).env("HOME", folder);
        command
    })
}

/// What a page's reader says: that they take HTML, and lies about who they are.
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
    // Nor does what she is known by: the site has its own cookies, and no others.
    assert!(!told.contains("credhost_") && told.contains("cookie: other=2; own=1"), "{}", page.body);
    // By a key for that service: it is taken away, and given back.
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
fn nginx_lets_in_whom_the_host_knows() {
    let (host, folder) = host();
    let nginx = nginx(folder.path(), site());
    let page = she_reads(&host, nginx.address);
    let assertion = page.body.lines().find_map(|line| line.strip_prefix("Credhost-Assertion: ")).expect("an assertion");
    // What a site makes of it that does not take a proxy's word.
    let curl = Command::new("curl").args(["-s", &format!("http://{}/account/keys.json", nginx.address)]).output();
    let keys = String::from_utf8(curl.expect("curl runs").stdout).unwrap();
    let said = python::chromium("verify.py", &[&keys, assertion, "todo"]);
    assert_eq!(said.trim(), "alice alice /account");
}

#[test]
fn caddy_lets_in_whom_the_host_knows() {
    let (host, folder) = host();
    let caddy = caddy(folder.path(), site());
    she_reads(&host, caddy.address);
}

#[test]
fn chromium_shows_pages_that_can_be_read_and_keeps_other_sites_out() {
    let home = TestHome::new();
    home.make();
    let listen = "[service.web.listen]\nhttp = \"127.0.0.1:0\"\n";
    home.configure(|text| format!("{text}\n[service.web]\nmay = [\"attach\"]\n{listen}"));
    home.identity("alice", PASSWORD, &["web", "todo", "todo/work"]);
    home.install("web");
    let mut host = home.start();
    let line = host.wait_for("serving http on ");
    let address: SocketAddr = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let (chromium, driver) =
        (debian::program("chromium", "chromium"), debian::program("chromedriver", "chromium-driver"));
    // They stay, to be looked at.
    let folder = system_tests::target().join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    let (chromium, driver, folder) =
        (chromium.display().to_string(), driver.display().to_string(), folder.display().to_string());
    // To a browser this machine is as good as TLS by this name alone.
    let url = format!("http://localhost:{}/", address.port());
    python::chromium("sign_in.py", &[&chromium, &driver, &url, "alice", PASSWORD, &folder]);
}
