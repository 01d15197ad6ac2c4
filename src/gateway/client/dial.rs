//! How an endpoint comes about: as a client or as a server (S2-21, S2-22).

use super::carrier::Carrier;
use super::codec::{Codec, Raw};
use super::door::{Address, Pass};
use super::endpoint::{Endpoint, Route};
use super::error::ConnectError;
use super::settings::Settings;
use super::tls::Tls;
use crate::gateway::handshake::Key;
use crate::gateway::token::GatewayToken;
use tokio::io::{AsyncRead, AsyncWrite};

/// Connects to a gateway as a client.
#[derive(Debug, Clone)]
pub struct DialClient<C = Raw> {
    address: String,
    pass: Pass,
    tls: Tls,
    settings: Settings,
    codec: C,
}

/// Connects to a gateway as a server.
#[derive(Debug, Clone)]
pub struct DialServer<C = Raw>(DialClient<C>);

impl DialClient {
    /// Names the gateway: `HOST[:PORT]` (port 3478), `tls://HOST:PORT`, or a WebSocket's URL, `ws://HOST[:PORT]` or `wss://HOST[:PORT]`,
    /// whose path is `/gateway` where it has none.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        let (tls, settings) = (Tls::default(), Settings::default());
        Self { address: address.into(), pass: Pass::Client(None), tls, settings, codec: Raw }
    }
}

impl<C: Codec> DialClient<C> {
    /// Shows this token first, as gateways ask for that have `tokens = true`.
    #[must_use]
    pub fn token(mut self, token: GatewayToken) -> Self {
        self.pass = Pass::Client(Some(token));
        self
    }

    /// Trusts these inside TLS; the system's certificate authorities by default.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Sets limits and times.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets what messages mean; bytes by default.
    #[must_use]
    pub fn codec<D: Codec>(self, codec: D) -> DialClient<D> {
        let Self { address, pass, tls, settings, .. } = self;
        DialClient { address, pass, tls, settings, codec }
    }

    /// Connects, and returns when the gateway has let this endpoint in. A first attempt that fails is not repeated.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Endpoint<C>, ConnectError> {
        let address = Address::parse(&self.address, &self.pass)?;
        let (tls, pass, settings) = (self.tls.clone(), self.pass.clone(), self.settings.clone());
        Endpoint::connect(Route { address, tls, pass, settings }, self.codec.clone()).await
    }

    /// Does the same on a stream that was opened by other means; the address has no meaning then, and nothing is reconnected.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_over<S>(&self, stream: S) -> Result<Endpoint<C>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let carrier = Carrier::Stream(Box::new(stream));
        Endpoint::over(carrier, &self.pass, &self.settings, self.codec.clone()).await
    }
}

impl DialServer {
    /// Names the gateway and its HMAC-SHA256 door: `HOST[:PORT]` (port 3481), or a WebSocket's URL, whose path is `/gateway/servers` where it
    /// has none. What is sent here waits for credit of the gateway's, and is never closed for another's slowness.
    #[must_use]
    pub fn hmac(address: impl Into<String>, id: u32, key: Key) -> Self {
        Self(DialClient { pass: Pass::Hmac { id, key }, ..DialClient::new(address) })
    }

    /// Names the gateway and its MD5 door, as fastway's servers know it: `HOST[:PORT]` (port 3480), or `tls://HOST:PORT` for mutual TLS.
    #[must_use]
    pub fn md5(address: impl Into<String>, id: u32, key: Key) -> Self {
        Self(DialClient { pass: Pass::Md5 { id, key }, ..DialClient::new(address) })
    }
}

impl<C: Codec> DialServer<C> {
    /// Sets TLS, as [`DialClient::tls`] does; for mutual TLS with [`Tls::identity`].
    #[must_use]
    pub fn tls(self, tls: Tls) -> Self {
        Self(self.0.tls(tls))
    }

    /// Sets limits and times.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self(self.0.settings(settings))
    }

    /// Sets what messages mean; bytes by default.
    #[must_use]
    pub fn codec<D: Codec>(self, codec: D) -> DialServer<D> {
        DialServer(self.0.codec(codec))
    }

    /// Connects, as [`DialClient::connect`] does.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Endpoint<C>, ConnectError> {
        self.0.connect().await
    }

    /// Connects on a stream, as [`DialClient::connect_over`] does.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_over<S>(&self, stream: S) -> Result<Endpoint<C>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.0.connect_over(stream).await
    }
}
