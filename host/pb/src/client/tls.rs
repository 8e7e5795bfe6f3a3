//! Trusted authorities: the crate's feature `tls`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, rustls};

/// The authorities that are trusted to certify a host.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// Trusts the authorities whose certificates are in this file, and no others: `tls/ca.pem`, which `credhost tls init`
    /// creates.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or contains no certificate.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use pb::client::tls::Trust;
    /// use pb::client::Endpoint;
    ///
    /// // The authority that `credhost tls init` has created.
    /// let trust = Trust::in_file("/etc/credhost/ca.pem")?;
    /// let client = Endpoint::tls("pb.example.org:8788", trust).connect().await?;
    /// # let _ = client;
    /// # Ok(()) }
    /// ```
    pub fn in_file(file: impl AsRef<Path>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = CertificateDer::pem_file_iter(file.as_ref()).map_err(io::Error::other)?;
        roots.add_parsable_certificates(found.filter_map(Result::ok));
        if roots.is_empty() {
            return Err(io::Error::other("there is no certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    pub(super) async fn connect(&self, address: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}

impl From<Arc<ClientConfig>> for Trust {
    /// Uses a configuration of rustls, for example with a client certificate or the machine's roots.
    fn from(config: Arc<ClientConfig>) -> Self {
        Self(config)
    }
}
