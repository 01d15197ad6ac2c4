//! A transfer with `quinn` only: segmentation offload, search for the MTU, buffers of 4 MiB.

use anyhow::Context;
use ginnel::internals::net::time;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const BUFFER: usize = 4 << 20;
const CHUNK: usize = 128 << 10;
const NAME: &str = "path.example";

fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(1448);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(16 << 20))
        .receive_window(VarInt::from_u32(64 << 20))
        .send_window(32 << 20);
    Arc::new(transport)
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> anyhow::Result<Endpoint> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.bind(&address.into())?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(EndpointConfig::default(), server, socket.into(), runtime)?)
}

/// Receives one stream; the certificate goes to a file.
pub(super) async fn receive(address: SocketAddr, certificate: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into())?;
    config.transport_config(transport());
    let endpoint = endpoint(address, Some(config))?;
    let part = certificate.with_extension("part");
    std::fs::write(&part, made.cert.der())?;
    std::fs::rename(part, certificate)?;
    let connection = endpoint.accept().await.context("closed")?.await?;
    let mut stream = connection.accept_uni().await?;
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer).await?.is_some() {}
    connection.closed().await;
    Ok(())
}

/// Sends this many bytes to an address; returns how long it took.
pub(super) async fn send(
    address: SocketAddr,
    certificate: &Path,
    mut bytes: u64,
) -> anyhow::Result<Duration> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(certificate)?))?;
    let provider = Arc::new(quinn::rustls::crypto::ring::default_provider());
    let tls = quinn::rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&quinn::rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = endpoint(([0, 0, 0, 0], 0).into(), None)?;
    let connection = endpoint.connect_with(config, address, NAME)?.await?;
    let begin = time::mono();
    let mut stream = connection.open_uni().await?;
    let buffer = vec![7; CHUNK];
    while bytes > 0 {
        let len = bytes.min(CHUNK as u64);
        stream.write_all(&buffer[..usize::try_from(len)?]).await?;
        bytes -= len;
    }
    stream.finish()?;
    stream.stopped().await?;
    let took = begin.elapsed();
    connection.close(0_u32.into(), b"done");
    endpoint.wait_idle().await;
    Ok(took)
}
