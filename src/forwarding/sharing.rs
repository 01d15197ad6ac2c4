//! The side that shares: carries out the requests of one connection, as far as the policy permits them.

use super::MAX_CONNECTIONS;
use super::copying::copy;
use super::flow::Flow;
use super::local_socket::{self, LocalStream};
use super::policy::{PermittedTarget, Policy, ServiceTarget};
use super::reverse;
use super::session::{OpenError, Session, accept, read_request, refuse};
use super::wire::{HostPort, Refusal, RefusalCode, Request, Target, Transport};
use crate::agent::{ConnectionError, RecvStream, SendStream};
use crate::net::interfaces;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

/// Listeners that one connection may have open.
const MAX_LISTENERS: usize = 16;

/// What happens on a shared connection.
#[derive(Debug)]
pub(crate) enum SharingEvent {
    /// A request was refused, or its target cannot be reached.
    Refused(Target, Refusal),
    /// The other side has opened a listener here.
    Listening(SocketAddr),
}

/// Handles the events of a shared connection.
pub(crate) type OnSharingEvent = Arc<dyn Fn(SharingEvent) + Send + Sync>;

/// Serves one connection until it ends, and returns why.
pub(crate) async fn serve(
    session: &Arc<Session>,
    policy: &Arc<Policy>,
    on_event: OnSharingEvent,
) -> ConnectionError {
    let sharer = Arc::new(Sharer {
        session: Arc::clone(session),
        policy: Arc::clone(policy),
        on_event,
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        listeners: Semaphore::new(MAX_LISTENERS),
    });
    let accepting = async {
        loop {
            match session.connection().accept_bi().await {
                // The tasks end with their streams.
                Ok(stream) => drop(tokio::spawn(Arc::clone(&sharer).handle_stream(stream))),
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        error = accepting => error,
        error = session.deliver_datagrams() => error,
    }
}

struct Sharer {
    session: Arc<Session>,
    policy: Arc<Policy>,
    on_event: OnSharingEvent,
    connections: Arc<Semaphore>,
    listeners: Semaphore,
}

impl Sharer {
    async fn handle_stream(self: Arc<Self>, (send, mut recv): (SendStream, RecvStream)) {
        let request = match read_request(&mut recv).await {
            Ok(request) => request,
            Err(OpenError::Wire(error)) => {
                let refusal = Refusal::new(RefusalCode::Unsupported, error.to_string());
                return refuse((send, recv), refusal).await;
            }
            Err(error) => return tracing::debug!(%error, "a stream without a header"),
        };
        let stream = (send, recv);
        let handled = match request {
            Request::Query(target) => self.handle_query(target, stream).await,
            Request::Connect(target) => self.handle_connect(target, stream).await,
            Request::Flow { id, target } => self.handle_flow((id, target), stream).await,
            Request::Listen { listener, host, port } => {
                self.handle_listen((listener, host, port), stream).await
            }
            Request::Incoming { .. } => {
                refuse(
                    stream,
                    Refusal::new(RefusalCode::NotPermitted, "this side has asked for no listener"),
                )
                .await;
                Ok(())
            }
        };
        if let Err(error) = handled {
            tracing::debug!(%error, "a forwarded connection has ended");
        }
    }

    async fn refuse(&self, target: Target, refusal: Refusal, stream: (SendStream, RecvStream)) {
        (self.on_event)(SharingEvent::Refused(target, refusal.clone()));
        refuse(stream, refusal).await;
    }

    async fn handle_query(
        &self,
        target: Target,
        (mut send, recv): (SendStream, RecvStream),
    ) -> Result<(), OpenError> {
        match self.policy.permit(&target) {
            Ok(permitted) => {
                accept(&mut send, permitted.target.transport(), 0).await?;
                Ok(send.finish().await?)
            }
            Err(refusal) => {
                self.refuse(target, refusal, (send, recv)).await;
                Ok(())
            }
        }
    }

    async fn handle_connect(
        &self,
        target: Target,
        (mut send, recv): (SendStream, RecvStream),
    ) -> Result<(), OpenError> {
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let connected = match &permit {
            Ok(_) => self.connect(&target).await,
            Err(_) => Err(Refusal::new(RefusalCode::Busy, "too many connections")),
        };
        match connected {
            Ok((local, transport)) => {
                accept(&mut send, transport, 0).await?;
                copy(local, (send, recv), &self.session.traffic, false).await
            }
            Err(refusal) => {
                self.refuse(target, refusal, (send, recv)).await;
                Ok(())
            }
        }
    }

    async fn connect(&self, target: &Target) -> Result<(LocalStream, Transport), Refusal> {
        let permitted = self.policy.permit(target)?;
        match &permitted.target {
            ServiceTarget::Tcp(address) => {
                let addresses = resolve(address, &permitted).await?;
                Ok((local_socket::connect_tcp(&addresses).await?, Transport::Tcp))
            }
            ServiceTarget::Unix(path) => Ok((local_socket::connect_unix(path).await?, Transport::Unix)),
            ServiceTarget::Udp(_) => {
                Err(Refusal::new(RefusalCode::Unsupported, "it is a UDP service: add /udp"))
            }
        }
    }

    async fn handle_flow(
        &self,
        (id, target): (u32, Target),
        (mut send, recv): (SendStream, RecvStream),
    ) -> Result<(), OpenError> {
        let opened = async {
            let socket = Arc::new(self.connect_udp(&target).await?);
            let to = Arc::clone(&socket);
            let flow = Flow::new(&self.session, id, true, move |payload| drop(to.try_send(payload)))?;
            Ok::<_, Refusal>((socket, flow))
        };
        let (socket, (flow, task)) = match opened.await {
            Ok(opened) => opened,
            Err(refusal) => {
                self.refuse(target, refusal, (send, recv)).await;
                return Ok(());
            }
        };
        accept(&mut send, Transport::Udp, 0).await?;
        let receive = async {
            let mut buffer = vec![0; usize::from(u16::MAX)];
            loop {
                // An error reports that an earlier datagram did not arrive.
                if let Ok(length) = socket.recv(&mut buffer).await {
                    flow.send(&buffer[..length]);
                }
            }
        };
        tokio::select! {
            ended = task.run((send, recv)) => ended,
            () = receive => Ok(()),
        }
    }

    /// Returns a socket that exchanges datagrams with the target, and with nobody else.
    async fn connect_udp(&self, target: &Target) -> Result<UdpSocket, Refusal> {
        let permitted = self.policy.permit(target)?;
        let ServiceTarget::Udp(address) = &permitted.target else {
            return Err(Refusal::new(RefusalCode::Unsupported, "it is no UDP service: leave out /udp"));
        };
        let addresses = resolve(address, &permitted).await?;
        let Some(address) = addresses.first() else {
            return Err(Refusal::new(RefusalCode::HostUnreachable, "no address"));
        };
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let connected = async {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(address).await?;
            socket.writable().await?;
            Ok(socket)
        };
        connected.await.map_err(|error| local_socket::refusal(&error))
    }

    async fn handle_listen(
        &self,
        (listener, host, port): (u32, String, u16),
        stream: (SendStream, RecvStream),
    ) -> Result<(), OpenError> {
        let refusal = match self.policy.permit_listen(&host, port) {
            Ok(at) => match self.listeners.try_acquire() {
                Ok(_permit) => {
                    let on_listening = |at| (self.on_event)(SharingEvent::Listening(at));
                    let connections = Arc::clone(&self.connections);
                    return reverse::listen(&self.session, (listener, at), stream, connections, on_listening)
                        .await;
                }
                Err(_) => Refusal::new(RefusalCode::Busy, "too many listeners"),
            },
            Err(refusal) => refusal,
        };
        refuse(stream, refusal).await;
        Ok(())
    }
}

/// Returns the addresses of a target that the policy permits.
async fn resolve(target: &HostPort, permitted: &PermittedTarget) -> Result<Vec<SocketAddr>, Refusal> {
    let own = interfaces::addresses().map_err(|error| local_socket::refusal(&error))?;
    local_socket::resolve(target, |ip| permitted.permits_address(ip, &own)).await
}
