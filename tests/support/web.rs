//! A simple HTTP client in place of a browser: one connection, and cookies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user's browser. It sends all requests over one connection, which must last.
pub struct Browser {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    /// The cookies that the server has set. It sends them with each request.
    pub cookies: BTreeMap<String, String>,
}

/// A response.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Page {
    /// Returns a header's value. It is empty if the header is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(of, _)| of.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Encodes a form.
#[must_use]
pub fn form(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        let before = if text.is_empty() { "" } else { "&" };
        write!(text, "{before}{name}=").expect("a text can be written to");
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(char::from(byte)),
                _ => write!(text, "%{byte:02X}").expect("a text can be written to"),
            }
        }
    }
    text
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).expect("the door is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("it has a timeout");
    stream.set_nodelay(true).expect("it is sent at once");
    BufReader::new(stream)
}

impl Browser {
    /// Connects.
    ///
    /// # Panics
    /// When nothing listens there.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: connect(address), cookies: BTreeMap::new() }
    }

    /// Opens another connection, with the same cookies.
    #[must_use]
    pub fn again(&self, address: SocketAddr) -> Self {
        Self { address, stream: connect(address), cookies: self.cookies.clone() }
    }

    pub fn get(&mut self, path: &str) -> Page {
        self.send("GET", path, &[], "")
    }

    /// Sends a form, as a page from the same origin does.
    pub fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Page {
        let origin = format!("http://{}", self.address);
        self.send("POST", path, &[("Origin", &origin)], &form(fields))
    }

    /// Sends a request, and reads the response.
    ///
    /// # Panics
    /// When the connection does not last.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Page {
        self.say(method, path, headers, body);
        self.answer()
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When the connection does not last.
    pub fn say(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        let mut line = |name: &str, value: &str| write!(text, "{name}: {value}\r\n").expect("a text can be written to");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            line("Host", &self.address.to_string());
        }
        headers.iter().for_each(|(name, value)| line(name, value));
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty() {
            line("Cookie", &cookies.join("; "));
        }
        if method == "POST" {
            line("Content-Type", "application/x-www-form-urlencoded");
            line("Content-Length", &body.len().to_string());
        }
        let text = text + "\r\n" + body;
        self.stream.get_mut().write_all(text.as_bytes()).expect("the connection lasts");
    }

    /// Reads a response.
    ///
    /// # Panics
    /// When the connection does not last.
    pub fn answer(&mut self) -> Page {
        let mut line = || {
            let mut line = String::new();
            let count = self.stream.read_line(&mut line).expect("the connection lasts");
            assert!(count > 0, "the connection has ended");
            line.trim_end().to_owned()
        };
        let first = line();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut page = Page { status: status.expect("a status"), headers: Vec::new(), body: String::new() };
        loop {
            let header = line();
            let Some((name, value)) = header.split_once(": ") else { break };
            page.headers.push((name.to_owned(), value.to_owned()));
        }
        let length = page.header("content-length").parse().unwrap_or(0);
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the connection lasts");
        page.body = String::from_utf8(body).expect("a text");
        for (_, cookie) in page.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")) {
            let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            match value {
                "" => self.cookies.remove(name),
                value => self.cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
        page
    }

    /// Signs in.
    ///
    /// # Panics
    /// When the sign-in is refused.
    pub fn sign_in(&mut self, name: &str, password: &str) {
        let page = self.post("/sign-in", &[("name", name), ("password", password)]);
        assert_eq!((page.status, page.header("location")), (303, "/"), "{}", page.body);
    }

    /// Whether this browser is signed in.
    pub fn is_signed_in(&mut self) -> bool {
        self.get("/auth").status == 200
    }
}
