//! `credhost call`: a PB client for the shell.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use credhost::control::Secret;
use pb::client::{Client, Credential, Error, Options, Remote};
use pb::shell::{arguments, json, quoted};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use ssh_key::{PrivateKey, Signature};
use zeroize::Zeroizing;

use super::home::password;
use super::{CliError, Output};

/// How long a host may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// PB's port, unless another is named (`twisted.spread.pb.portno`).
const PORT: u16 = 8787;

#[derive(Debug, Args)]
pub(super) struct Call {
    /// USER@HOST[:PORT]/SERVICE[/PERSPECTIVE]
    target: String,
    /// The method.
    method: String,
    /// Arguments: JSON, or else plain text; NAME=ARGUMENT for a keyword.
    #[arg(allow_negative_numbers = true)]
    arguments: Vec<String>,
    /// Read the password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Log in with an access token, read from standard input, instead of a password.
    #[arg(long, conflicts_with_all = ["password_stdin", "key"])]
    token_stdin: bool,
    /// Log in with the SSH private key in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    key: Option<PathBuf>,
    /// Connect over TLS.
    #[arg(long)]
    tls: bool,
    /// Trust only the authority in this file (ca.pem of `credhost tls init`).
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca: Option<PathBuf>,
}

/// What to log in with.
enum With {
    Password(Secret),
    Token(Secret),
    Key(Box<PrivateKey>),
}

/// Who logs in, with what, and where.
struct Way<'a> {
    target: &'a Target,
    with: With,
    tls: bool,
    ca: Option<PathBuf>,
}

impl Way<'_> {
    async fn connect(&self) -> Result<Client, CliError> {
        let target = self.target;
        let connecting = tokio::net::TcpStream::connect((target.host.as_str(), target.port));
        let stream = tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|error| {
                CliError::new(format!("cannot reach {}:{}: {error}", target.host, target.port))
                    .hint("does a host run there? `credhost run` starts one")
            })?;
        let options = Options { private: self.private(), ..Options::default() };
        if !self.tls {
            let hello = tokio::time::timeout(CONNECT, Client::with(stream, options)).await;
            return Ok(hello.map_err(|_| {
                CliError::new(format!("{}:{} does not speak Perspective Broker in the clear", target.host, target.port))
                    .hint("if it is a host's TLS port, use --tls, and --ca FILE if the host has its own authority")
            })??);
        }
        let name = rustls_pki_types::ServerName::try_from(target.host.clone())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting(self.ca.as_deref())?));
        let stream = connector.connect(name, stream).await.map_err(|error| {
            use rustls::{CertificateError, Error};
            let what = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
            let (what, hint) = match what {
                Some(Error::InvalidMessage(_)) => {
                    ("does not speak TLS", "leave --tls out, or name the host's TLS port")
                }
                Some(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => (
                    "has a certificate for other names",
                    "use one of those names, or ask the operator for a new certificate: credhost tls init --name NAME",
                ),
                Some(Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                )) => ("has a certificate that has expired", "the operator can make a new one: credhost tls init"),
                _ => (
                    "is not trusted",
                    "--ca FILE names the authority that vouches for it: tls/ca.pem in the host's home folder",
                ),
            };
            CliError::new(format!("{}:{} {what}: {error}", target.host, target.port)).hint(hint)
        })?;
        Ok(Client::with(stream, options).await?)
    }

    /// Whether a password can be sent as plaintext: over TLS, or within this machine.
    fn private(&self) -> bool {
        let host = self.target.host.as_str();
        self.tls || host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    async fn login(&self, client: &Client) -> Result<Remote, Error> {
        let target = self.target;
        let name = format!("{}/{}", target.user, target.path);
        match &self.with {
            With::Password(secret) => client.login_with(&Credential::password(&name, &secret.0), None).await,
            With::Token(token) => {
                let avatar = client.login_token(&token.0, None).await?;
                // Both the token and the target say whose it is.
                let owner: String = avatar.call("identity", &()).await?.read()?;
                if !target.user.is_empty() && target.user != owner {
                    return Err(Error::Unexpected(format!("the token is {owner}'s, not {}'s", target.user)));
                }
                let (service, perspective) = match target.path.split_once('/') {
                    Some((service, perspective)) => (service, Some(perspective)),
                    None => (target.path.as_str(), None),
                };
                avatar.call("attach", &(service, perspective)).await?.remote()
            }
            With::Key(key) => {
                let line = key.public_key().to_openssh().unwrap_or_default();
                let sign = |bytes: &[u8]| {
                    use signature::Signer;
                    let signed: Result<Signature, _> = key.try_sign(bytes);
                    signed.ok().and_then(|signed| Vec::try_from(signed).ok()).unwrap_or_default()
                };
                client.login_key(&name, &line, sign, None).await
            }
        }
    }
}

/// Trusts one authority, or those that this machine trusts.
fn trusting(ca: Option<&Path>) -> Result<rustls::ClientConfig, CliError> {
    let mut roots = rustls::RootCertStore::empty();
    let file = ca.unwrap_or(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    let wrong = |error: &dyn std::fmt::Display| {
        CliError::new(format!("{}: {error}", file.display())).hint("--ca FILE names the authority to trust")
    };
    let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
    roots.add_parsable_certificates(found.filter_map(Result::ok));
    if roots.is_empty() {
        return Err(wrong(&"there is no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn private_key(file: &Path) -> Result<Box<PrivateKey>, CliError> {
    let wrong = |error: &dyn std::fmt::Display| CliError::new(format!("{}: {error}", file.display()));
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(|error| wrong(&error))?);
    // Some programs do not break the lines of such files where OpenSSH does.
    let mut lines = text.lines();
    let (first, last) = (lines.next().unwrap_or_default(), lines.next_back().unwrap_or_default());
    let body: Zeroizing<String> = Zeroizing::new(lines.collect());
    let mut broken = Zeroizing::new(format!("{first}\n"));
    for line in body.as_bytes().chunks(70) {
        broken.push_str(&String::from_utf8_lossy(line));
        broken.push('\n');
    }
    broken.push_str(last);
    let key = PrivateKey::from_openssh(broken.as_bytes())
        .map_err(|error| wrong(&error).hint("if it is a private key of OpenSSH's, try an Ed25519 one, or a token"))?;
    if key.is_encrypted() {
        return Err(CliError::new(format!("{} is protected by a passphrase", file.display()))
            .hint("make a key for this without one, or use a token: credhost token new"));
    }
    if key.algorithm().is_rsa() {
        // ssh-key 0.6.7 signs wrongly with RSA: it takes one prime for both.
        return Err(CliError::new(format!("{} is an RSA key, which this command cannot sign with", file.display()))
            .hint("use an Ed25519 or ECDSA key, or a token; the host itself accepts RSA keys from other clients"));
    }
    Ok(Box::new(key))
}

impl Call {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        let target = Target::parse(&self.target)?;
        let (positional, keywords) =
            arguments(&self.arguments).map_err(|wrong| CliError::new(wrong.what).hint(wrong.hint))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tls, ca) = (self.tls, self.ca);
        let with = match (&self.key, self.token_stdin) {
            (Some(file), _) => With::Key(private_key(file)?),
            (None, true) => With::Token(password(true, "", false)?),
            _ => {
                let prompt = format!("password of {}: ", target.user);
                if !self.password_stdin {
                    // Connect first: nobody should type a password for a host that is not there. The login gets a connection of
                    // its own, because typing may take long.
                    let nothing = With::Password(Secret(zeroize::Zeroizing::default()));
                    let way = Way { target: &target, with: nothing, tls, ca: ca.clone() };
                    runtime.block_on(way.connect())?;
                }
                With::Password(password(self.password_stdin, &prompt, false)?)
            }
        };
        let way = Way { target: &target, with, tls, ca };
        if matches!(way.with, With::Token(_)) && !way.private() {
            return Err(CliError::new("the token was not sent: it would go over the network in the clear")
                .hint("use the host's TLS port: --tls, and --ca FILE if the host has its own authority"));
        }
        let answer = runtime.block_on(async {
            let client = way.connect().await?;
            let perspective = way.login(&client).await.map_err(|error| refused(&error, &target))?;
            let answer =
                perspective.call_with(&self.method, &positional, &keywords).await.map_err(|error| match error {
                    Error::Failure(failure) if failure.value.contains("expected a text, found") => {
                        CliError::new(failure.to_string())
                            .hint("arguments are parsed as JSON if possible: write the text 42 as '\"42\"'")
                    }
                    Error::Failure(failure)
                        if failure.is("builtins.TypeError")
                            && !keywords.is_empty()
                            && (failure.value.contains("is missing")
                                || keywords.keys().any(|name| failure.value.contains(name))) =>
                    {
                        let names: Vec<&str> = keywords.keys().map(String::as_str).collect();
                        CliError::new(failure.to_string()).hint(format!(
                            "{} was read as the name of an argument; write a text with an = as {}",
                            names.join(", "),
                            quoted(&format!("{}=…", names[0]))
                        ))
                    }
                    Error::Failure(failure) => CliError::new(failure.to_string()),
                    error => error.into(),
                })?;
            Ok::<_, CliError>(answer.value()?)
        })?;
        output.show(&json(answer.root()), || answer.to_string());
        Ok(())
    }
}

fn refused(error: &Error, target: &Target) -> CliError {
    match error {
        Error::Failure(failure) if failure.class == "twisted.cred.error.UnauthorizedLogin" => CliError::new(format!(
            "the host refused the login of {}: wrong name or password, key or token",
            target.user
        ))
        .hint("the operator sees the reason: credhost audit show --with login.refused"),
        Error::Failure(failure) if failure.is("twisted.cred.error.Unauthorized") => {
            CliError::new(format!("{} has no key to {}", target.user, target.path)).hint(format!(
                "the operator can give one: credhost key add {} {}",
                target.user,
                target.path.replace('/', " ")
            ))
        }
        Error::Failure(failure) if failure.is("twisted.python.failure.DefaultException") => {
            CliError::new(format!("{} has no key to the service {}", target.user, target.path))
                .hint(format!("the operator can give one: credhost key add {} {}", target.user, target.path))
        }
        Error::Failure(failure) if failure.is("builtins.KeyError") => {
            CliError::new(format!("there is no service named {}", failure.value.trim_matches('\'')))
                .hint("the operator can list the services: credhost service list")
        }
        other => CliError::new(other.to_string()),
    }
}

struct Target {
    user: String,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |what: String| {
            CliError::new(format!("{text:?} names no perspective: {what}"))
                .hint("write USER@HOST[:PORT]/SERVICE[/PERSPECTIVE], as in alice@127.0.0.1:8787/todo")
        };
        let missing = |what: &str| wrong(format!("there is no {what}"));
        let (user, rest) = text.split_once('@').ok_or_else(|| missing("USER@ at its beginning"))?;
        let (place, path) = rest.split_once('/').ok_or_else(|| missing("/SERVICE at its end"))?;
        let (host, port) = match place.rsplit_once(':') {
            // An IPv6 address has colons of its own.
            Some((host, port)) if !port.contains(']') && !host.ends_with(':') => {
                let number = port.parse().ok().filter(|number| *number > 0);
                (
                    host,
                    number
                        .ok_or_else(|| wrong(format!("{port:?} is not a port: a port is a number from 1 to 65535")))?,
                )
            }
            _ => (place, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        for (part, name) in [(user, "user before the @"), (host, "host behind the @"), (path, "service behind the /")] {
            if part.is_empty() {
                return Err(missing(name));
            }
        }
        Ok(Self { user: user.to_owned(), host: host.to_owned(), port, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_parsed_into_their_parts() {
        let target = Target::parse("alice@127.0.0.1:9000/todo/work").ok().unwrap();
        assert_eq!(
            (target.user.as_str(), target.host.as_str(), target.port, target.path.as_str()),
            ("alice", "127.0.0.1", 9000, "todo/work")
        );
        assert_eq!(Target::parse("alice@[::1]/todo").ok().unwrap().port, PORT);
        assert_eq!(Target::parse("alice@[::1]:9/todo").ok().unwrap().host, "::1");
        for bad in ["alice", "alice@host", "@host/todo", "alice@/todo", "alice@host:port/todo"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
