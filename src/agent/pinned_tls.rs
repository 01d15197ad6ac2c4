//! TLS 1.3 between the two holders of a ticket, with both public keys pinned.
//!
//! Each [`AgentRole`] has an Ed25519 key that is derived from the ticket's secret. Each side presents a self-signed certificate of its own key and
//! accepts only the key of the other role; names and dates in the certificates are ignored. A server that forwards the packets
//! has neither key, so it can neither read them nor act as either side, and a connector cannot act as a listener.

use super::keys::{AgentRole, Secret};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use std::sync::Arc;
use tokio_rustls::rustls;

/// The ALPN protocol of both sides.
pub(super) const ALPN: &[u8] = b"ginnel/2";
/// The ALPN protocol of a connector that only asks whether the listener answers ([`super::ping`]).
pub(super) const PING_ALPN: &[u8] = b"ginnel-ping/1";
/// The name in both certificates; nothing checks it.
pub(super) const SERVER_NAME: &str = "ginnel";

/// Why the TLS settings could not be made; never because of a peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsSetupError {
    #[error("the derived key is not an Ed25519 key")]
    Key,
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// The certificate and key of one side, and the public key that it accepts.
#[derive(Debug)]
pub(super) struct TlsIdentity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    expected: Arc<PinnedKey>,
}

impl TlsIdentity {
    /// Derives the keys of `role` and of its counterpart.
    pub(super) fn new(secret: &Secret, role: AgentRole) -> Result<Self, TlsSetupError> {
        let peer = Ed25519KeyPair::from_seed_unchecked(&secret.signing_seed(role.other()));
        let peer = peer.map_err(|_| TlsSetupError::Key)?;
        let key = PrivatePkcs8KeyDer::from([&PKCS8_ED25519[..], &secret.signing_seed(role)[..]].concat());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)?;
        let certificate = rcgen::CertificateParams::new([SERVER_NAME.to_owned()])?.self_signed(&pair)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key,
            expected: Arc::new(PinnedKey {
                spki: [&SPKI_ED25519[..], peer.public_key().as_ref()].concat(),
                provider: provider(),
            }),
        })
    }

    /// Returns the TLS settings of the connector, with its ALPN protocol.
    pub(super) fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, TlsSetupError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.expected) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(
                vec![self.certificate.clone()],
                PrivateKeyDer::Pkcs8(self.key.clone_key()),
            )?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Returns the TLS settings of the listener.
    pub(super) fn server_config(&self) -> Result<ServerConfig, TlsSetupError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&self.expected) as Arc<dyn ClientCertVerifier>)
            .with_single_cert(vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(self.key.clone_key()))?;
        config.alpn_protocols = vec![ALPN.to_vec(), PING_ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// PKCS #8 version 1 of an Ed25519 seed, without the seed (RFC 8410 section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// SubjectPublicKeyInfo of an Ed25519 key, without the key (RFC 8410 section 4).
const SPKI_ED25519: [u8; 12] = [0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Accepts one public key, whatever else its certificate contains.
#[derive(Debug)]
struct PinnedKey {
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl PinnedKey {
    fn check_key(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        if parsed.subject_public_key_info().as_ref() == self.spki {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

const ONLY_TLS13: rustls::Error =
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic);

/// The methods that the verifiers of both sides have in common: TLS 1.3 only, and only the pinned key.
macro_rules! signature_methods {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(ONLY_TLS13)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.check_key(certificate)?;
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_key(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signature_methods!();
}

impl ClientCertVerifier for PinnedKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check_key(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signature_methods!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    fn handshake(client: ClientConfig, server: ServerConfig) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        Ok(())
    }

    fn identity(secret: u8, role: AgentRole) -> TlsIdentity {
        TlsIdentity::new(&Secret([secret; 16]), role).unwrap()
    }

    #[test]
    fn two_holders_of_one_ticket_complete_the_handshake() {
        let (connector, listener) = (identity(1, AgentRole::Connector), identity(1, AgentRole::Listener));
        handshake(connector.client_config(ALPN).unwrap(), listener.server_config().unwrap()).unwrap();
    }

    #[test]
    fn a_wrong_secret_fails_on_either_side() {
        let (connector, listener) = (identity(1, AgentRole::Connector), identity(2, AgentRole::Listener));
        handshake(connector.client_config(ALPN).unwrap(), listener.server_config().unwrap()).unwrap_err();
        // A client that accepts any server is refused by the server.
        let mut lax = identity(1, AgentRole::Connector);
        lax.expected = Arc::clone(&identity(2, AgentRole::Connector).expected);
        handshake(lax.client_config(ALPN).unwrap(), listener.server_config().unwrap()).unwrap_err();
    }

    #[test]
    fn a_side_cannot_take_the_role_of_the_other() {
        let (a, b) = (identity(1, AgentRole::Connector), identity(1, AgentRole::Connector));
        handshake(a.client_config(ALPN).unwrap(), b.server_config().unwrap()).unwrap_err();
        let (a, b) = (identity(1, AgentRole::Listener), identity(1, AgentRole::Listener));
        handshake(a.client_config(ALPN).unwrap(), b.server_config().unwrap()).unwrap_err();
    }

    #[test]
    fn the_right_certificate_without_its_key_fails() {
        let mut thief = identity(9, AgentRole::Listener);
        thief.certificate = identity(1, AgentRole::Listener).certificate;
        thief.expected = identity(1, AgentRole::Listener).expected;
        let verifier = Arc::clone(&thief.expected) as Arc<dyn ClientCertVerifier>;
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&thief.key).unwrap();
        let stolen = rustls::sign::CertifiedKey::new(vec![thief.certificate.clone()], signer);
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
        server.alpn_protocols = vec![ALPN.to_vec()];
        let error =
            handshake(identity(1, AgentRole::Connector).client_config(ALPN).unwrap(), server).unwrap_err();
        assert_eq!(error, rustls::Error::InvalidCertificate(CertificateError::BadSignature));
    }
}
