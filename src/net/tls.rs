//! TLS on accepted streams, with the application protocols of
//! [RFC 7443](https://www.rfc-editor.org/rfc/rfc7443) and HTTP.

use super::certificate::{Certificate, CertificateError};
use super::demux::StreamKind;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;

/// TURN, and with it Binding.
const STUN_TURN: &[u8] = b"stun.turn";
/// Only Binding.
const NAT_DISCOVERY: &[u8] = b"stun.nat-discovery";
/// The page, `/ice`, and the WebSockets.
const HTTP: &[u8] = b"http/1.1";

/// The protocol that ALPN has selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// None: the first bytes decide.
    Any,
    /// STUN and TURN.
    Stun,
    /// HTTP.
    Http,
}

impl Alpn {
    /// Returns whether a client that selected this protocol may use `kind`.
    pub(crate) fn allows(self, kind: StreamKind) -> bool {
        match self {
            Self::Any => matches!(kind, StreamKind::Stun | StreamKind::Http | StreamKind::Gateway),
            Self::Stun => kind == StreamKind::Stun,
            Self::Http => kind == StreamKind::Http,
        }
    }
}

/// The server's side of TLS 1.2 and 1.3.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(..)")
    }
}

impl Tls {
    /// Makes the configuration with a certificate.
    ///
    /// # Errors
    /// [`CertificateError::Unusable`] when the key is not the certificate's, or of a kind TLS has no use for.
    pub(crate) fn new(certificate: &Certificate) -> Result<Self, CertificateError> {
        let unusable = |error: rustls::Error| certificate.unusable(error);
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(unusable)?
                .with_no_client_auth()
                .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
                .map_err(unusable)?;
        config.alpn_protocols = [STUN_TURN, NAT_DISCOVERY, HTTP].map(<[u8]>::to_vec).to_vec();
        Ok(Self { config: Arc::new(config) })
    }

    /// Makes the configuration for clients whose certificate is signed by one of `authorities`.
    ///
    /// # Errors
    /// [`CertificateError`] where the certificate, or one of those in `authorities`, cannot be used.
    pub(crate) fn mutual(certificate: &Certificate, authorities: &Path) -> Result<Self, CertificateError> {
        let unusable = |error: &dyn std::fmt::Display| certificate.unusable(error);
        let mut roots = RootCertStore::empty();
        for authority in Certificate::chain(authorities)? {
            roots.add(authority).map_err(|error| CertificateError::Content {
                path: authorities.to_owned(),
                reason: error.to_string(),
            })?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
            .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
            .map_err(|error| unusable(&error))?;
        Ok(Self { config: Arc::new(config) })
    }

    /// Performs the handshake; returns the stream inside and the selected protocol. Has no timeout.
    ///
    /// # Errors
    /// The error of the stream or of the handshake.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<(TlsStream<S>, Alpn)> {
        let accepted = TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).into_fallible().await;
        let stream = match accepted {
            Ok(stream) => stream,
            Err((error, mut stream)) => {
                // The refusal does not depend on whether the client receives the alert.
                let _ = stream.flush().await;
                return Err(error);
            }
        };
        let chosen = match stream.get_ref().1.alpn_protocol() {
            Some(STUN_TURN | NAT_DISCOVERY) => Alpn::Stun,
            Some(HTTP) => Alpn::Http,
            _ => Alpn::Any,
        };
        Ok((stream, chosen))
    }
}
