//! Keys of QUIC's Initial packets that only the two sides of a call can derive.
//!
//! QUIC derives these keys from the connection id in the client's first packet ([RFC 9001 section
//! 5.2](https://www.rfc-editor.org/rfc/rfc9001#section-5.2)), which everybody on the path can read and use to inject packets that start a
//! handshake in the connector's place or end its own. Here an HMAC of the connection id takes its place, so that an injected packet fails
//! decryption and is dropped. For the same reason a Retry is never accepted; the listener sends none.

use super::call_auth::InitialKey;
use quinn::crypto::{
    ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn::{ConnectError, ConnectionId, Side};
use quinn_proto::TransportError;
use quinn_proto::transport_parameters::TransportParameters;
use ring::hmac;
use std::any::Any;
use std::sync::Arc;

/// Maximum length of a connection id (RFC 9000 section 17.2).
const MAX_CID_LEN: usize = 20;

impl InitialKey {
    fn derive_cid(&self, cid: &ConnectionId) -> ConnectionId {
        ConnectionId::new(&hmac::sign(&self.0, cid).as_ref()[..MAX_CID_LEN])
    }
}

/// A TLS configuration of QUIC whose Initial keys depend on `key`.
pub(super) struct Keyed<C> {
    inner: Arc<C>,
    key: InitialKey,
}

impl<C> Keyed<C> {
    pub(super) fn new(inner: C, key: InitialKey) -> Self {
        Self { inner: Arc::new(inner), key }
    }

    fn session(&self, inner: Box<dyn Session>) -> Box<dyn Session> {
        Box::new(KeyedSession { inner, key: self.key.clone() })
    }
}

impl<C: ServerConfig + 'static> ServerConfig for Keyed<C> {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.inner.initial_keys(version, &self.key.derive_cid(dst_cid))
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.inner.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        self.session(Arc::clone(&self.inner).start_session(version, params))
    }
}

impl<C: ClientConfig + 'static> ClientConfig for Keyed<C> {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(self.session(Arc::clone(&self.inner).start_session(version, server_name, params)?))
    }
}

struct KeyedSession {
    inner: Box<dyn Session>,
    key: InitialKey,
}

impl Session for KeyedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(&self.key.derive_cid(dst_cid), side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, _orig_dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}
