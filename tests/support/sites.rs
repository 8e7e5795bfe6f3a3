//! Sites behind a proxy that asks the host who a visitor is.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::debian;

/// Starts a site that answers with the request line and the headers that it receives from the proxy.
///
/// # Panics
/// When it cannot listen.
#[must_use]
pub fn site() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines().map_while(Result::ok);
                let told: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
                let told = told.join("\n");
                let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len());
                // The proxy may have closed the connection.
                let _ = (&stream).write_all(answer.as_bytes());
            });
        }
    });
    address
}

/// A running proxy.
pub struct Proxy {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a proxy on a free port. No proxy can report which port the system has given it, so the port is chosen beforehand. If
/// the proxy ends because another program has taken the port meanwhile, another port is tried.
fn proxy(start: impl Fn(SocketAddr) -> Command) -> Proxy {
    for _ in 0..5 {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let mut child = start(address).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if TcpStream::connect(address).is_ok() && listens(child.id(), address) {
                return Proxy { child, address };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    panic!("the proxy does not start");
}

/// Whether this process listens at this address: the port may be another program's by now.
fn listens(process: u32, address: SocketAddr) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux says what listens");
    let port = format!(":{:04X} ", address.port());
    // Its local address, the state (0A: listening), and as the tenth word, its inode.
    let listening = sockets.lines().filter(|line| line.contains(&port) && line.contains(" 0A "));
    let inodes: Vec<String> =
        listening.filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(9)?))).collect();
    let own = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut own = own.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    own.any(|is| inodes.iter().any(|inode| is.as_os_str() == inode.as_str()))
}

/// Starts nginx, configured as in the guide, in front of this site.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn nginx(folder: &Path, site: SocketAddr) -> Proxy {
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
                 location /account/auth {{ return 404; }}\n\
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

/// Starts Caddy in front of this site.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn caddy(folder: &Path, site: SocketAddr) -> Proxy {
    let program = debian::program("caddy", "caddy");
    proxy(|address| {
        let (here, port) = (folder.display(), address.port());
        let config = format!(
            "{{\n  admin off\n  auto_https off\n}}\n\
             http://127.0.0.1:{port} {{\n\
               bind 127.0.0.1\n\
               handle /account/auth* {{\n    respond 404\n  }}\n\
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

/// Starts Traefik in front of this site. The host's pages are at the address `web`: Traefik does not support Unix sockets.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn traefik(folder: &Path, site: SocketAddr, web: SocketAddr) -> Proxy {
    let program = crate::python::traefik();
    let config = format!(
        "http:\n  \
           routers:\n    \
             account: {{ rule: 'PathPrefix(`/account/`) && !PathPrefix(`/account/auth`)', service: credhost, priority: 100 }}\n    \
             site: {{ rule: 'PathPrefix(`/`)', service: site, middlewares: [clear, who] }}\n  \
           middlewares:\n    \
             clear: {{ headers: {{ customRequestHeaders: {{ Remote-Identity: '', Remote_User: '' }} }} }}\n    \
             who:\n      \
               forwardAuth:\n        \
                 address: 'http://{web}/account/auth/todo?cookies'\n        \
                 preserveLocationHeader: true\n        \
                 authResponseHeaders: [Remote-User, Credhost-Assertion, Cookie]\n  \
           services:\n    \
             credhost: {{ loadBalancer: {{ servers: [{{ url: 'http://{web}' }}] }} }}\n    \
             site: {{ loadBalancer: {{ servers: [{{ url: 'http://{site}' }}] }} }}\n"
    );
    let file = folder.join("traefik.yml");
    std::fs::write(&file, config).expect("it can be written");
    let proxy = proxy(|address| {
        let mut command = Command::new(&program);
        command.arg(format!("--entrypoints.web.address={address}"));
        command.arg(format!("--providers.file.filename={}", file.display()));
        command.args(["--global.checknewversion=false", "--global.sendanonymoususage=false"]);
        command
    });
    // It listens before it has read its routes.
    let deadline = Instant::now() + Duration::from_secs(60);
    while answers_404(proxy.address) {
        assert!(Instant::now() < deadline, "it has no routes");
        std::thread::sleep(Duration::from_millis(20));
    }
    proxy
}

fn answers_404(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("it is taken");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("it answers");
    line.contains(" 404 ")
}
