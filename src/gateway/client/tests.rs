//! Endpoints with their I/O, against a fake gateway that implements only the wire.

use super::{
    ClientBuilder, ConnectError, ConnectionError, DialError, Endpoint, Json, Key, Raw, ReceiveError,
    SendError, ServerBuilder, Settings, Status,
};
use crate::gateway::wire::{self, Command, ConnId, Frame, MAX_PACKET};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::HashMap;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

const KEY: &[u8; 16] = b"sixteen bytes !!";

/// The frames queued for an endpoint of the fake gateway. Clients are numbered from 1, servers from 1000.
type FrameQueue = mpsc::UnboundedSender<Vec<u8>>;

#[derive(Default)]
struct GatewayState {
    next: u32,
    peers: HashMap<u32, FrameQueue>,
    conns: HashMap<u32, [u32; 2]>,
}

/// A gateway that forwards and does not check.
#[derive(Clone)]
struct FakeGateway {
    state: Arc<Mutex<GatewayState>>,
    cut: Arc<watch::Sender<u32>>,
}

impl FakeGateway {
    fn new() -> Self {
        Self { state: Arc::default(), cut: Arc::new(watch::Sender::new(0)) }
    }

    /// Listens for clients, or for servers that authenticate by HMAC.
    async fn listen(&self, servers: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gateway = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let Some(id) = gateway.accept_endpoint(&mut stream, servers).await else { return };
                    gateway.serve(stream, id, servers).await;
                });
            }
        });
        address
    }

    async fn accept_endpoint(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        server: bool,
    ) -> Option<u32> {
        if !server {
            let mut state = self.state.lock().unwrap();
            state.next += 1;
            return Some(state.next);
        }
        stream.write_all(&[9; 32]).await.ok()?;
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).await.ok()?;
        let (id, proof) = Key::new(*KEY).unwrap().verify(&[9; 32], &answer)?;
        stream.write_all(&proof).await.ok()?;
        Some(id)
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite, id: u32, credit: bool) {
        let (mut read, mut write) = tokio::io::split(stream);
        let (queue, mut queued) = mpsc::unbounded_channel::<Vec<u8>>();
        self.state.lock().unwrap().peers.insert(id, queue);
        let mut cut = self.cut.subscribe();
        let mut buffer = BytesMut::new();
        loop {
            tokio::select! {
                biased;
                _ = cut.changed() => break,
                Some(bytes) = queued.recv() => write.write_all(&bytes).await.unwrap(),
                got = read.read_buf(&mut buffer) => match got {
                    Ok(len) if len > 0 => self.take(&mut buffer, id, credit),
                    _ => break,
                },
            }
        }
        let mut state = self.state.lock().unwrap();
        state.peers.remove(&id);
        let gone: Vec<u32> =
            state.conns.iter().filter(|(_, ends)| ends.contains(&id)).map(|(c, _)| *c).collect();
        for conn in gone {
            state.close(conn);
        }
    }

    fn take(&self, buffer: &mut BytesMut, id: u32, credit: bool) {
        let mut state = self.state.lock().unwrap();
        while let Ok(Some((frame, len))) = wire::frame(buffer, MAX_PACKET) {
            match frame {
                Frame::Command(Command::New) => {
                    state.next += 1;
                    let conn = ConnId(state.next + 5000);
                    state.send_command(id, Command::Open(conn));
                }
                Frame::Command(Command::Dial { conn, remote }) if state.peers.contains_key(&remote) => {
                    state.conns.insert(conn.0, [id, remote]);
                    state.send_command(id, Command::Accept { conn, remote });
                    state.send_command(remote, Command::Accept { conn, remote: id });
                    for end in [id, remote].into_iter().filter(|end| *end >= 1000) {
                        state.send_command(end, Command::Credit { conn, bytes: 100_000 });
                    }
                }
                Frame::Command(Command::Dial { conn, .. }) => state.send_command(id, Command::Refuse(conn)),
                Frame::Command(Command::Close(conn)) => state.close(conn.0),
                Frame::Command(_) => {}
                Frame::Data { conn, .. } => {
                    if let Some(ends) = state.conns.get(&conn.0) {
                        let other = if ends[0] == id { ends[1] } else { ends[0] };
                        if let Some(queue) = state.peers.get(&other) {
                            let _ = queue.send(buffer[..len].to_vec());
                        }
                        if credit {
                            let bytes = u32::try_from(len).unwrap();
                            state.send_command(id, Command::Credit { conn, bytes });
                        }
                    }
                }
            }
            buffer.advance(len);
        }
    }

    /// Ends all connections.
    fn cut(&self) {
        self.cut.send_modify(|cut| *cut += 1);
    }
}

impl GatewayState {
    fn send_command(&self, id: u32, command: Command<'_>) {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        if let Some(queue) = self.peers.get(&id) {
            let _ = queue.send(bytes);
        }
    }

    fn close(&mut self, conn: u32) {
        for end in self.conns.remove(&conn).into_iter().flatten() {
            self.send_command(end, Command::Close(ConnId(conn)));
        }
    }
}

fn settings() -> Settings {
    let quick = Duration::from_millis(10);
    Settings { reconnect: Some((quick, quick)), receive_timeout: 5 * quick, ..Settings::default() }
}

fn key() -> Key {
    Key::new(*KEY).unwrap()
}

async fn pair(gateway: &FakeGateway) -> (Endpoint<Raw>, Endpoint<Raw>) {
    let client = ClientBuilder::new(gateway.listen(false).await).settings(settings());
    let server = ServerBuilder::hmac(gateway.listen(true).await, 1007, key()).settings(settings());
    (client.connect().await.unwrap(), server.connect().await.unwrap())
}

/// No task is in `accept` when the connection arrives.
#[tokio::test]
async fn messages_pass_both_ways_though_no_task_waited_in_accept() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut there = client.dial(1007).await.unwrap();
    there.send(Bytes::from("Hello")).await.unwrap();
    let mut here = server.accept().await.unwrap();
    assert_eq!((here.id(), there.remote()), (there.id(), 1007));
    assert_eq!(here.receive().await.unwrap().unwrap(), "Hello");
    here.send(Bytes::from("World")).await.unwrap();
    here.close();
    assert_eq!(there.receive().await.unwrap().unwrap(), "World");
    assert!(there.receive().await.unwrap().is_none());
    assert!(matches!(there.send(Bytes::new()).await, Err(SendError::Closed)));
    let mut back = server.dial(here_client(&client, &server).await).await.unwrap();
    back.send(Bytes::from("from the server")).await.unwrap();
    assert_eq!(client.accept().await.unwrap().receive().await.unwrap().unwrap(), "from the server");
}

/// Returns the client's id at the server.
async fn here_client(client: &Endpoint<Raw>, server: &Endpoint<Raw>) -> u32 {
    let _there = client.dial(1007).await.unwrap();
    server.accept().await.unwrap().remote()
}

#[tokio::test]
async fn many_dials_at_once_each_get_their_own_connection() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    tokio::spawn(async move {
        while let Ok(mut conn) = server.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(message)) = conn.receive().await {
                    let _ = conn.send(message).await;
                }
            });
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        let client = client.clone();
        tasks.spawn(async move {
            let mut conn = client.dial(1007).await.unwrap();
            for round in 0..20_u32 {
                let message = Bytes::from(format!("{number}.{round}"));
                conn.send(message.clone()).await.unwrap();
                assert_eq!(conn.receive().await.unwrap(), Some(message));
            }
            conn.id()
        });
    }
    let mut ids = tasks.join_all().await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
}

#[tokio::test]
async fn a_dial_to_an_unknown_id_is_refused_and_one_without_answer_times_out() {
    let gateway = FakeGateway::new();
    let (client, _server) = pair(&gateway).await;
    assert!(matches!(client.dial(1008).await, Err(DialError::Refused(1008))));
    let limit = Duration::from_millis(50);
    let (near, mut far) = tokio::io::duplex(1000);
    let silent = ClientBuilder::new("").settings(Settings { dial_timeout: limit, ..settings() });
    let silent = tokio::spawn(async move { silent.connect_over(near).await });
    let mut open = Vec::new();
    Command::Open(ConnId(3)).emit(&mut open);
    far.write_all(&open).await.unwrap();
    let silent = silent.await.unwrap().unwrap();
    assert!(matches!(silent.dial(1).await, Err(DialError::TimedOut(elapsed)) if elapsed == limit));
}

#[tokio::test]
async fn a_message_that_is_too_long_is_an_error_and_changes_nothing() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut there = client.dial(1007).await.unwrap();
    let longest = MAX_PACKET - 4;
    let refused = there.send(vec![0; longest + 1].into()).await;
    assert!(matches!(refused, Err(SendError::TooLong { len, max }) if (len, max) == (longest + 1, longest)));
    there.send(vec![7; longest].into()).await.unwrap();
    let mut here = server.accept().await.unwrap();
    assert_eq!(here.receive().await.unwrap().unwrap().len(), longest);
}

#[tokio::test]
async fn a_stream_ends_each_direction_separately_and_a_lost_connection_is_an_error() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut there = client.dial(1007).await.unwrap().into_stream();
    let mut here = server.accept().await.unwrap().into_stream();
    // Less than is granted: the fake gateway does not count credit.
    let text = vec![5; 200_000];
    let (sent, received) = tokio::join!(
        async {
            there.write_all(&text).await.unwrap();
            there.shutdown().await
        },
        async {
            let mut all = Vec::new();
            here.read_to_end(&mut all).await.map(|_| all)
        }
    );
    sent.unwrap();
    assert_eq!(received.unwrap(), text);
    here.write_all(b"and back").await.unwrap();
    here.shutdown().await.unwrap();
    let mut all = String::new();
    there.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "and back");
    drop((here, there));
    let mut there = client.dial(1007).await.unwrap().into_stream();
    drop(server.accept().await.unwrap());
    let broken = there.read(&mut [0]).await.unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn values_pass_as_json_and_invalid_json_is_an_error() {
    let gateway = FakeGateway::new();
    let numbers = ClientBuilder::new(gateway.listen(false).await).codec(Json::<Vec<u32>>::new());
    let numbers = numbers.connect().await.unwrap();
    let server = ServerBuilder::hmac(gateway.listen(true).await, 1007, key()).connect().await.unwrap();
    let mut there = numbers.dial(1007).await.unwrap();
    there.send(vec![1, 2, 3]).await.unwrap();
    let mut here = server.accept().await.unwrap();
    assert_eq!(here.receive().await.unwrap().unwrap(), "[1,2,3]");
    here.send(Bytes::from("[4]")).await.unwrap();
    assert_eq!(there.receive().await.unwrap(), Some(vec![4]));
    here.send(Bytes::from("four")).await.unwrap();
    assert!(matches!(there.receive().await, Err(ReceiveError::Codec(_))));
}

#[tokio::test]
async fn after_a_lost_connection_virtual_connections_end_and_dial_and_accept_continue() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut old = client.dial(1007).await.unwrap();
    let mut changes = client.changes();
    let accepting = tokio::spawn({
        let server = server.clone();
        async move {
            server.accept().await.unwrap();
            server.accept().await
        }
    });
    tokio::task::yield_now().await;
    gateway.cut();
    assert!(matches!(
        old.receive().await,
        Err(ReceiveError::Connection(ConnectionError::Closed | ConnectionError::Io(_)))
    ));
    assert!(matches!(old.send(Bytes::new()).await, Err(SendError::Connection(_))));
    assert!(matches!(changes.next().await, Some(Status::Reconnecting(_))));
    assert!(matches!(changes.next().await, Some(Status::Connected)));
    let mut new = loop {
        // The server may still be away.
        if let Ok(new) = client.dial(1007).await {
            break new;
        }
    };
    new.send(Bytes::from("again")).await.unwrap();
    let mut here = accepting.await.unwrap().unwrap();
    assert_eq!(here.receive().await.unwrap().unwrap(), "again");
}

#[tokio::test]
async fn a_closed_endpoint_closes_its_connections_after_what_it_had_sent() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut there = client.dial(1007).await.unwrap();
    let mut here = server.accept().await.unwrap();
    for _ in 0..100 {
        there.send(vec![1; 1000].into()).await.unwrap();
    }
    client.clone().close().await;
    assert!(matches!(client.dial(1007).await, Err(DialError::Connection(ConnectionError::LocallyClosed))));
    assert!(client.accept().await.is_err());
    assert!(matches!(there.receive().await, Err(ReceiveError::Connection(ConnectionError::LocallyClosed))));
    for _ in 0..100 {
        assert_eq!(here.receive().await.unwrap().unwrap().len(), 1000);
    }
    assert!(here.receive().await.unwrap().is_none());
}

#[tokio::test]
async fn the_endpoint_ends_when_its_last_user_is_dropped() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut there = client.dial(1007).await.unwrap();
    drop(client);
    there.send(Bytes::from("last")).await.unwrap();
    let mut here = server.accept().await.unwrap();
    assert_eq!(here.receive().await.unwrap().unwrap(), "last");
    let mut late = server.dial(here.remote()).await.unwrap();
    assert!(late.receive().await.unwrap().is_none(), "the endpoint accepts nothing any more");
    drop(there);
    assert!(here.receive().await.unwrap().is_none());
    let gone = async {
        while gateway.state.lock().unwrap().peers.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_read_is_closed_and_the_others_continue() {
    let gateway = FakeGateway::new();
    let (client, server) = pair(&gateway).await;
    let mut lazy = client.dial(1007).await.unwrap();
    let mut busy = client.dial(1007).await.unwrap();
    let (mut to_lazy, mut to_busy) = (server.accept().await.unwrap(), server.accept().await.unwrap());
    let flood = tokio::spawn(async move { while to_lazy.send(vec![0; 10_000].into()).await.is_ok() {} });
    for round in 0..50_u32 {
        to_busy.send(round.to_string().into()).await.unwrap();
        assert_eq!(busy.receive().await.unwrap().unwrap(), round.to_string());
    }
    flood.await.unwrap();
    let end = loop {
        match lazy.receive().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Err(ReceiveError::Overflow)), "{end:?}");
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_a_wrong_proof_is_not_trusted() {
    let gateway = FakeGateway::new();
    let address = gateway.listen(true).await;
    let wrong = ServerBuilder::hmac(address, 1007, Key::new(*b"another 16 bytes").unwrap());
    assert!(matches!(wrong.connect().await, Err(ConnectError::Refused)));
    let (near, mut far) = tokio::io::duplex(1000);
    let liar = tokio::spawn(async move {
        far.write_all(&[1; 32]).await.unwrap();
        far.read_exact(&mut [0; 68]).await.unwrap();
        far.write_all(&[2; 32]).await.unwrap();
    });
    let met = ServerBuilder::hmac("", 1, key()).connect_over(near).await;
    assert!(matches!(met, Err(ConnectError::NotAuthenticated)));
    liar.await.unwrap();
}

/// An endpoint whose gateway sends `script` after the first New, and then neither reads nor writes.
async fn scripted(settings: Settings, script: Vec<u8>) -> (Endpoint<Raw>, tokio::io::DuplexStream) {
    let (near, mut far) = tokio::io::duplex(64);
    let client = ClientBuilder::new("").settings(settings);
    let client = tokio::spawn(async move { client.connect_over(near).await });
    far.read_exact(&mut [0; 9]).await.unwrap();
    far.write_all(&script).await.unwrap();
    (client.await.unwrap().unwrap(), far)
}

fn script(commands: &[Command<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in commands {
        command.emit(&mut bytes);
    }
    bytes
}

/// A stream that records the length of each write.
struct WriteRecorder {
    script: std::io::Cursor<Vec<u8>>,
    written: Arc<Mutex<Vec<usize>>>,
}

impl AsyncRead for WriteRecorder {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let script = &mut self.get_mut().script;
        if script.position() == script.get_ref().len() as u64 {
            Poll::Pending
        } else {
            Pin::new(script).poll_read(cx, buffer)
        }
    }
}

impl AsyncWrite for WriteRecorder {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.written.lock().unwrap().push(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        self.written.lock().unwrap().push(len);
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn queued_messages_are_written_by_one_call() {
    let written = Arc::default();
    let script = script(&[Command::Open(ConnId(1)), Command::Accept { conn: ConnId(2), remote: 9 }]);
    let io = WriteRecorder { script: std::io::Cursor::new(script), written: Arc::clone(&written) };
    let client = ClientBuilder::new("").connect_over(io).await.unwrap();
    let mut conn = client.accept().await.unwrap();
    let settle = async || {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    };
    settle().await;
    written.lock().unwrap().clear();
    for _ in 0..100 {
        conn.send(vec![0; 92].into()).await.unwrap();
    }
    settle().await;
    assert_eq!(*written.lock().unwrap(), [100 * 100]);
}

/// S2-21, S2-26: each setting, with a value other than its default.
#[tokio::test(start_paused = true)]
async fn a_client_keeps_to_its_settings() {
    let limit = Duration::from_millis(700);
    let (near, _far) = tokio::io::duplex(64);
    let client = ClientBuilder::new("").settings(Settings { auth_timeout: limit, ..settings() });
    assert!(
        matches!(client.connect_over(near).await, Err(ConnectError::TimedOut(elapsed)) if elapsed == limit)
    );

    let incoming = [
        Command::Open(ConnId(1)),
        Command::Accept { conn: ConnId(2), remote: 9 },
        Command::Accept { conn: ConnId(3), remote: 9 },
    ];
    let small = Settings { max_packet: 104, send_queue: 5, read_buffer: 1, backlog: 1, ..settings() };
    let (client, mut far) = scripted(small, script(&incoming)).await;
    let mut conn = client.accept().await.unwrap();
    assert_eq!((conn.id(), conn.remote(), conn.max_message()), (2, 9, 100));
    let long = conn.send(vec![0; 101].into()).await;
    assert!(matches!(long, Err(SendError::TooLong { len: 101, max: 100 })));
    let mut sent = 0;
    while tokio::time::timeout(limit, conn.send(vec![0; 100].into())).await.is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 10, "five written, five queued");
    let mut all = vec![0; 2 * 13 + 10 * 108];
    far.read_exact(&mut all).await.unwrap();
    let closes = script(&[Command::Close(ConnId(1)), Command::Close(ConnId(3))]);
    assert_eq!(all[..26], closes, "the id of the first New, and the connection that exceeds the backlog");

    let mut flood = script(&incoming[..2]);
    for _ in 0..4 {
        wire::emit_header(&mut flood, ConnId(2), 1);
        flood.push(7);
    }
    let narrow = Settings {
        receive_queue: 3,
        receive_timeout: limit,
        idle_timeout: Duration::from_secs(900),
        ..settings()
    };
    let (client, mut far) = scripted(narrow, flood).await;
    let mut conn = client.accept().await.unwrap();
    let closes = script(&[Command::Close(ConnId(1)), Command::Close(ConnId(2))]);
    let mut written = vec![0; closes.len()];
    far.read_exact(&mut written).await.unwrap();
    assert_eq!(written, closes, "the connection that was not read is closed");
    for _ in 0..3 {
        assert_eq!(conn.receive().await.unwrap().unwrap()[..], [7]);
    }
    assert!(matches!(conn.receive().await, Err(ReceiveError::Overflow)));
}

/// S2-22: a server authenticates with its id and key; the credit that it grants is a setting.
#[tokio::test]
async fn a_server_proves_its_key_and_keeps_to_its_settings() {
    let (near, mut far) = tokio::io::duplex(1000);
    let server = ServerBuilder::md5("", 123, key());
    let server = tokio::spawn(async move { server.connect_over(near).await });
    far.write_all(&[1, 2, 3, 4, 5, 6, 7, 8]).await.unwrap();
    let mut answer = [0; 20];
    far.read_exact(&mut answer).await.unwrap();
    assert_eq!(key().verify_md5(&[1, 2, 3, 4, 5, 6, 7, 8], &answer), Some(123));
    far.write_all(&script(&[Command::Open(ConnId(1))])).await.unwrap();
    drop(server.await.unwrap().unwrap());

    let gateway = FakeGateway::new();
    let client = ClientBuilder::new(gateway.listen(false).await).connect().await.unwrap();
    let narrow = Settings { receive_bytes: 1000, ..settings() };
    let server = ServerBuilder::hmac(gateway.listen(true).await, 1007, key()).settings(narrow);
    let server = server.connect().await.unwrap();
    let mut there = client.dial(1007).await.unwrap();
    for _ in 0..3 {
        there.send(vec![0; 600].into()).await.unwrap();
    }
    let mut here = server.accept().await.unwrap();
    assert!(there.receive().await.unwrap().is_none(), "the fake gateway sends more than is granted");
    for _ in 0..2 {
        assert_eq!(here.receive().await.unwrap().unwrap().len(), 600);
    }
    assert!(matches!(here.receive().await, Err(ReceiveError::Overflow)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_gateway_is_probed_and_then_given_up() {
    let (near, mut far) = tokio::io::duplex(1000);
    let client =
        ClientBuilder::new("").settings(Settings { idle_timeout: Duration::from_secs(90), ..settings() });
    let client = tokio::spawn(async move { client.connect_over(near).await });
    let new = *b"\x05\0\0\0\0\0\0\0\0";
    let mut request = [0; 9];
    far.read_exact(&mut request).await.unwrap();
    assert_eq!(request, new);
    let mut open = Vec::new();
    Command::Open(ConnId(3)).emit(&mut open);
    far.write_all(&open).await.unwrap();
    let client = client.await.unwrap().unwrap();
    let mut changes = client.changes();
    far.read_exact(&mut [0; 13]).await.unwrap();
    far.read_exact(&mut request).await.unwrap();
    assert_eq!(request, new, "a second probe");
    far.write_all(&open).await.unwrap();
    far.read_exact(&mut [0; 13]).await.unwrap();
    assert!(matches!(changes.next().await, Some(Status::Closed(ConnectionError::TimedOut))));
}
