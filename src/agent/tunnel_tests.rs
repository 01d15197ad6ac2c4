use super::*;
use crate::agent::outlet::RelayedPeer;
use tokio::net::UdpSocket;

const QUIC: [u8; 3] = [0x40, 1, 2];

fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination: PEER, ecn: None, contents, segment_size, src_ip: None }
}

#[test]
fn the_first_byte_tells_what_a_datagram_is() {
    let channel = |payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0x40, 0, length[0], length[1]], payload].concat()
    };
    let table: [(&[u8], bool, Kind); 8] = [
        (&[0, 1, 0, 0], false, Kind::Message),
        (&[0, 1, 0, 0], true, Kind::Message),
        (&QUIC, false, Kind::Quic { header: 0 }),
        (&channel(&QUIC), true, Kind::Quic { header: 4 }),
        (&channel(&[0, 1, 0, 0]), true, Kind::Message),
        (&[0xC0, 0, 0, 0, 0, 9], false, Kind::Unknown),
        (&[0x20, 1, 2], false, Kind::Unknown),
        (&[], false, Kind::Unknown),
    ];
    for (datagram, is_turn_server, expected) in table {
        assert_eq!(classify(datagram, is_turn_server), expected, "{datagram:?}");
    }
}

#[tokio::test]
async fn a_full_queue_applies_back_pressure_and_capacity_wakes() {
    let (tunnel, _messages) = Tunnel::new(None);
    let would_block = tunnel.try_send(&transmit(&QUIC, None)).unwrap_err();
    assert_eq!(would_block.kind(), io::ErrorKind::WouldBlock, "no path yet");
    let queue = Arc::new(DatagramQueue::default());
    tunnel.set_outlet(Some(Outlet::Queue(Arc::clone(&queue), QueueFraming::Datagrams)));
    while tunnel.try_send(&transmit(&QUIC, None)).is_ok() {}
    let socket = Arc::new(TunnelSocket(Arc::clone(&tunnel)));
    let mut poller = socket.create_io_poller();
    let mut context = Context::from_waker(Waker::noop());
    assert!(poller.as_mut().poll_writable(&mut context).is_pending());
    assert_eq!(queue.next().await[..], QUIC);
    assert!(poller.as_mut().poll_writable(&mut context).is_ready());
}

#[tokio::test]
async fn a_new_path_gets_the_last_datagram_again() {
    let queues: [Arc<DatagramQueue>; 2] = Default::default();
    let tunnel = Tunnel::with_queue(Arc::clone(&queues[0]));
    tunnel.try_send(&transmit(&[0x40, 1, 0x40, 2, 0x40], Some(2))).unwrap();
    tunnel.set_outlet(Some(Outlet::Queue(Arc::clone(&queues[1]), QueueFraming::Datagrams)));
    assert_eq!(queues[1].next().await[..], [0x40]);
}

#[tokio::test]
async fn delivered_datagrams_come_from_one_address_and_are_bounded() {
    let (tunnel, _messages) = Tunnel::new(None);
    for _ in 0..2 * RECEIVE_QUEUE {
        tunnel.deliver(Bytes::from_static(&[0x41; 30]));
    }
    tunnel.deliver(Bytes::from_static(&[0xC0, 0, 0, 0, 0, 1]));
    let socket = TunnelSocket(tunnel);
    let mut total = 0;
    let mut context = Context::from_waker(Waker::noop());
    loop {
        let (mut one, mut two) = ([0; 64], [0; 64]);
        let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        let mut meta = [RecvMeta::default(); 2];
        let Poll::Ready(Ok(filled)) = socket.poll_recv(&mut context, &mut buffers, &mut meta) else {
            break;
        };
        assert!(meta[..filled].iter().all(|meta| meta.addr == PEER && meta.len == 30));
        total += filled;
    }
    assert_eq!(total, RECEIVE_QUEUE);
}

/// Sends a batch as the outlet of one side, and receives it as the sockets of another side.
#[tokio::test]
async fn a_batch_crosses_a_relay_and_messages_go_to_the_engine() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server_address = server.local_addr().unwrap();
    let port = Arc::new(UdpPort::bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let (tunnel, mut messages) = Tunnel::new(Some(server_address));
    tunnel.set_ports(vec![Arc::clone(&port)]);
    let peer = Arc::new(RelayedPeer::new("192.0.2.1:9".parse().unwrap(), Some(0x4001)));
    tunnel.set_outlet(Some(Outlet::relay(Arc::clone(&port), server_address, peer)));
    tunnel.try_send(&transmit(&[0x40, 1, 2, 0x40, 3, 4, 0x40], Some(3))).unwrap();
    // The relay sends back what it gets, and a message of its own.
    let mut buffer = [0; 100];
    for _ in 0..3 {
        let (len, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..2], [0x40, 1]);
        server.send_to(&buffer[..len], from).await.unwrap();
    }
    server.send_to(&[1, 1, 0, 0], port.local_addr()).await.unwrap();
    let socket = TunnelSocket(Arc::clone(&tunnel));
    let mut received = Vec::new();
    while received.len() < 7 {
        let chunk = std::future::poll_fn(|context| {
            let mut bytes = [0; 256];
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let mut meta = [RecvMeta::default()];
            std::task::ready!(socket.poll_recv(context, &mut buffers, &mut meta)).unwrap();
            let len = meta[0].len;
            assert_eq!(meta[0].addr, PEER);
            Poll::Ready(bytes[..len].to_vec())
        });
        received.extend(chunk.await);
    }
    assert_eq!(received, [0x40, 1, 2, 0x40, 3, 4, 0x40]);
    let never = std::future::poll_fn(|context| {
        let mut bytes = [0; 256];
        let mut meta = [RecvMeta::default()];
        socket.poll_recv(context, &mut [IoSliceMut::new(&mut bytes)], &mut meta).map(drop)
    });
    tokio::select! {
        () = never => panic!("a message is not QUIC's"),
        message = messages.recv() => {
            let source = MessageSource::Port { local: port.local_addr(), remote: server_address };
            assert_eq!(message, Some(EngineMessage { source, bytes: Bytes::from_static(&[1, 1, 0, 0]) }));
        }
    }
    assert!(tunnel.take_activity().received);
}
