//! TLS towards a server: trusted certificates, and the client's own.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

/// Trusted certificates, and the endpoint's own.
#[derive(Clone, Default)]
pub struct Tls {
    roots: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    name: Option<String>,
}

impl Tls {
    /// Trusts the system's certificate authorities; no certificate of its own.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Trusts these certificates (PEM) in place of the system's.
    #[must_use]
    pub fn roots(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Presents this certificate chain (PEM, its own first) with its private key (PEM). The port for servers with mutual TLS requires one.
    #[must_use]
    pub fn identity(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((chain.into(), key.into()));
        self
    }

    /// Expects a certificate for this name in place of the address's host.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Returns what another server than the one that is meant gets: neither the client's certificate nor the other name.
    pub(crate) fn for_proxy(&self) -> Self {
        Self { identity: None, name: None, ..self.clone() }
    }

    /// Performs the TLS handshake with `host` on a stream.
    pub(crate) async fn connect<S>(&self, stream: S, host: &str, alpn: &[&[u8]]) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = self.config()?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(invalid)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn config(&self) -> io::Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(invalid)?;
        let builder = match &self.roots {
            None => builder.with_root_certificates(system_roots()?),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in chain(pem)? {
                    roots.add(certificate).map_err(invalid)?;
                }
                builder.with_root_certificates(roots)
            }
        };
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((certificates, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(invalid)?;
                builder.with_client_auth_cert(chain(certificates)?, key).map_err(invalid)
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

/// Reads the system's certificate authorities. Those that cannot be parsed are left out.
fn system_roots() -> io::Result<RootCertStore> {
    let mut found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty().then(|| found.errors.pop()) {
        None => Ok(roots),
        Some(Some(error)) => Err(io::Error::new(io::ErrorKind::NotFound, error)),
        Some(None) => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the system has no certificate authorities"))
        }
    }
}

fn chain(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(invalid)?;
    if chain.is_empty() { Err(invalid("no certificate in it: it must be PEM")) } else { Ok(chain) }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
