//! A proxy's question who a visitor is: the answer of the sample service web, beside nginx's own answer without asking anybody.
//! One client, on one connection, in turns. `cargo bench -p credhost --bench web`; `-- 50000` for more requests.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use system_tests::debian;
use system_tests::host::{TestHome, TestHost};
use system_tests::web::Browser;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn credhost() -> (TestHost, SocketAddr) {
    let home = TestHome::new();
    home.make();
    let listen = "[service.web.listen]\nhttp = \"127.0.0.1:0\"\n";
    home.configure(|text| format!("{text}\n[service.web]\nmay = [\"attach\"]\n{listen}"));
    home.identity("alice", PASSWORD, &["web", "todo"]);
    ["web", "todo"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let line = host.wait_for("serving http on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    host.wait_for("libweb.so serves");
    (host, address)
}

struct Nginx(
    Child,
    SocketAddr,
    #[expect(dead_code, reason = "its files are there as long as it is")] tempfile::TempDir,
);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nginx() -> Nginx {
    let folder = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let here = folder.path().display();
    let config = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/errors; events {{}}\n\
         http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {here}/a; proxy_temp_path {here}/b;\n\
         fastcgi_temp_path {here}/c; uwsgi_temp_path {here}/d; scgi_temp_path {here}/e;\n\
         server {{ listen {address}; location / {{ return 200 \"\"; }} }} }}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(debian::program("nginx", "nginx-light"));
    command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-p").arg(folder.path());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Nginx(child, address, folder)
}

/// The duration of each request, in microseconds.
fn turn(browser: &mut Browser, path: &str, requests: usize) -> Vec<f64> {
    let each = |_| {
        let began = Instant::now();
        assert_eq!(browser.get(path).status, 200);
        began.elapsed().as_secs_f64() * 1e6
    };
    (0..requests).map(each).collect()
}

fn main() {
    let requests: usize = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(20_000);
    let ((_host, address), nginx) = (credhost(), nginx());
    let mut alice = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    let mut plain = alice.again(nginx.1);
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    // Warm-up.
    turn(&mut alice, "/auth", 500);
    turn(&mut alice, "/auth/todo", 500);
    turn(&mut plain, "/", 500);
    for _ in 0..4 {
        all[0].extend(turn(&mut plain, "/", requests / 4));
        all[1].extend(turn(&mut alice, "/auth", requests / 4));
        all[2].extend(turn(&mut alice, "/auth/todo", requests / 4));
    }
    let mut middle = [0.0; 3];
    for (at, name) in
        ["nginx, which asks nobody", "web, whoever has signed in", "web, by a key for todo"].iter().enumerate()
    {
        all[at].sort_by(f64::total_cmp);
        let part = |of: f64| all[at][((all[at].len() - 1) as f64 * of) as usize];
        middle[at] = part(0.5);
        let ratio = middle[at] / middle[0];
        println!(
            "{name:27} p50 {:6.0} us, p99 {:6.0} us, p99.9 {:6.0} us; {ratio:.1} times nginx's",
            part(0.5),
            part(0.99),
            part(0.999)
        );
    }
}
