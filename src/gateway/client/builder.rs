//! Builders of endpoints (S2-21, S2-22).

use super::address::{Address, EndpointCredentials};
use super::codec::{Codec, Raw};
use super::endpoint::{Endpoint, GatewayTarget};
use super::error::ConnectError;
use super::settings::Settings;
use super::transport::FrameTransport;
use crate::gateway::handshake::Key;
use crate::gateway::token::GatewayToken;
use crate::net::client_tls::Tls;
use crate::net::dialer::Dialer;
use crate::net::proxy_settings::ProxySettings;
use tokio::io::{AsyncRead, AsyncWrite};

/// Configures a client and connects it to a gateway.
#[derive(Debug, Clone)]
pub struct ClientBuilder<C = Raw> {
    address: String,
    credentials: EndpointCredentials,
    dialer: Dialer,
    settings: Settings,
    codec: C,
}

/// Configures a server and connects it to a gateway.
#[derive(Debug, Clone)]
pub struct ServerBuilder<C = Raw>(ClientBuilder<C>);

impl ClientBuilder {
    /// Sets the gateway's address: `HOST[:PORT]` (default port 3478), `tls://HOST:PORT`, or a WebSocket URL, `ws://HOST[:PORT]` or
    /// `wss://HOST[:PORT]` (default path `/gateway`).
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            credentials: EndpointCredentials::Client(None),
            dialer: Dialer::default(),
            settings: Settings::default(),
            codec: Raw,
        }
    }
}

impl<C: Codec> ClientBuilder<C> {
    /// Sends this gateway token first. Gateways with `require_token = true` need one.
    #[must_use]
    pub fn token(mut self, token: GatewayToken) -> Self {
        self.credentials = EndpointCredentials::Client(Some(token));
        self
    }

    /// Sets the trusted certificates; by default the system's.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.dialer.tls = tls;
        self
    }

    /// Sets the proxy of the connections; by default there is none. The library does not read the environment.
    #[must_use]
    pub fn proxies(mut self, proxies: ProxySettings) -> Self {
        self.dialer.proxies = proxies;
        self
    }

    /// Sets limits and timeouts.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets the format of messages; by default bytes.
    #[must_use]
    pub fn codec<D: Codec>(self, codec: D) -> ClientBuilder<D> {
        let Self { address, credentials, dialer, settings, .. } = self;
        ClientBuilder { address, credentials, dialer, settings, codec }
    }

    /// Connects, and returns when the gateway has accepted this endpoint. A failed first attempt is not repeated.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Endpoint<C>, ConnectError> {
        let address = Address::parse(&self.address, &self.credentials)?;
        let (dialer, credentials, settings) =
            (self.dialer.clone(), self.credentials.clone(), self.settings.clone());
        Endpoint::connect(GatewayTarget { address, dialer, credentials, settings }, self.codec.clone()).await
    }

    /// Connects over an existing stream. The address is not used, and the endpoint does not reconnect.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_over<S>(&self, stream: S) -> Result<Endpoint<C>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let transport = FrameTransport::Stream(Box::new(stream));
        Endpoint::over(transport, &self.credentials, &self.settings, self.codec.clone()).await
    }
}

impl ServerBuilder {
    /// Connects by HMAC-SHA256: `HOST[:PORT]` (default port 3481), or a WebSocket URL (default path `/gateway/servers`). Sending waits for
    /// the gateway's credit, and a slow receiver does not affect other virtual connections.
    #[must_use]
    pub fn hmac(address: impl Into<String>, id: u32, key: Key) -> Self {
        Self(ClientBuilder {
            credentials: EndpointCredentials::Hmac { id, key },
            ..ClientBuilder::new(address)
        })
    }

    /// Connects by MD5, as fastway's servers do: `HOST[:PORT]` (default port 3480), or `tls://HOST:PORT` for mutual TLS.
    #[must_use]
    pub fn md5(address: impl Into<String>, id: u32, key: Key) -> Self {
        Self(ClientBuilder {
            credentials: EndpointCredentials::Md5 { id, key },
            ..ClientBuilder::new(address)
        })
    }
}

impl<C: Codec> ServerBuilder<C> {
    /// Sets TLS as [`ClientBuilder::tls`] does; mutual TLS also needs [`Tls::identity`].
    #[must_use]
    pub fn tls(self, tls: Tls) -> Self {
        Self(self.0.tls(tls))
    }

    /// Sets the proxy of the connections as [`ClientBuilder::proxies`] does.
    #[must_use]
    pub fn proxies(self, proxies: ProxySettings) -> Self {
        Self(self.0.proxies(proxies))
    }

    /// Sets limits and timeouts.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self(self.0.settings(settings))
    }

    /// Sets the format of messages; by default bytes.
    #[must_use]
    pub fn codec<D: Codec>(self, codec: D) -> ServerBuilder<D> {
        ServerBuilder(self.0.codec(codec))
    }

    /// Connects as [`ClientBuilder::connect`] does.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Endpoint<C>, ConnectError> {
        self.0.connect().await
    }

    /// Connects over an existing stream as [`ClientBuilder::connect_over`] does.
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
