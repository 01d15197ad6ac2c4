//! UDP ports on loopback, with the real system's answers.

use super::*;
use mio::{Interest, Token, unix::SourceFd};
use rustix::net::sockopt::{ip_mtu_discover, ipv6_mtu_discover};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// One received datagram with bytes of its own.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    from: SocketAddr,
    local_ip: Option<IpAddr>,
    ttl: u8,
    tos: u8,
    payload: Vec<u8>,
}

fn port(ip: IpAddr, role: Role) -> BatchUdpSocket {
    BatchUdpSocket::bind(SocketAddr::new(ip, 0), role).unwrap()
}

/// Receives `count` datagrams; also returns the number of calls.
fn receive(port: &BatchUdpSocket, rx: &mut RxBuffers, count: usize) -> (Vec<Received>, usize) {
    let mut poll = mio::Poll::new().unwrap();
    let fd = port.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    let (mut received, mut calls) = (Vec::new(), 0);
    while received.len() < count {
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(!events.is_empty(), "only {} of {count} datagrams came", received.len());
        loop {
            let batch = match port.recv(rx) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                other => other.unwrap(),
            };
            calls += 1;
            received.extend(rx.datagrams(batch).map(|datagram| Received {
                from: datagram.from,
                local_ip: datagram.local_ip,
                ttl: datagram.ttl,
                tos: datagram.tos,
                payload: datagram.payload.as_bytes().to_vec(),
            }));
            rx.clear();
            if batch.is_drained() {
                break;
            }
        }
    }
    (received, calls)
}

fn errors(port: &BatchUdpSocket) -> Vec<PeerError> {
    let mut errors = Vec::new();
    port.take_errors(|error| errors.push(error));
    errors
}

/// An address without a listener.
fn closed(ip: IpAddr) -> SocketAddr {
    port(ip, Role::Single).local_addr()
}

#[test]
fn datagrams_arrive_with_their_addresses_ttl_and_tos() {
    for ip in [V4, V6] {
        let (a, b) = (port(ip, Role::Shared), port(ip, Role::Relay));
        let plain = Route::to(a.local_addr());
        b.send(&plain, b"one").unwrap();
        b.send(&Route { ttl: Some(7), tos: 0xb9, ..plain }, b"three").unwrap();
        b.send(&Route { tos: 3, ..plain }, b"one").unwrap();
        b.send(&Route { ttl: Some(255), source: Some(ip), ..plain }, b"").unwrap();
        let (received, _) = receive(&a, &mut RxBuffers::default(), 4);
        let expected = |ttl, tos, payload: &[u8]| Received {
            from: b.local_addr(),
            local_ip: Some(ip),
            ttl,
            tos,
            payload: payload.to_vec(),
        };
        let expected = [
            expected(64, 0, b"one"),
            expected(7, 0xb9, b"three"),
            expected(64, 3, b"one"),
            expected(255, 0, b""),
        ];
        assert_eq!(received, expected);
    }
}

#[test]
fn a_connected_socket_receives_only_from_its_peer_and_learns_that_it_is_closed() {
    for ip in [V4, V6] {
        let (peer, stranger) = (port(ip, Role::Single), port(ip, Role::Single));
        let any: IpAddr =
            if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut connected = port(any, Role::Single);
        connected.connect(peer.local_addr()).unwrap();
        assert_eq!(connected.local_addr().ip(), ip);
        stranger.send(&Route::to(connected.local_addr()), b"ignored").unwrap();
        let mut rx = RxBuffers::default();
        for (route, payload) in [
            (Route::to(peer.local_addr()), b"one"),
            (Route { tos: 3, ..Route::to(peer.local_addr()) }, b"two"),
        ] {
            connected.send(&route, payload).unwrap();
            let (received, _) = receive(&peer, &mut rx, 1);
            assert_eq!((received[0].from, &received[0].payload[..]), (connected.local_addr(), &payload[..]));
        }
        connected.send(&Route::to(stranger.local_addr()), b"else").unwrap();
        assert_eq!(receive(&stranger, &mut rx, 1).0[0].payload, b"else");
        peer.send(&Route::to(connected.local_addr()), b"answer").unwrap();
        assert_eq!(receive(&connected, &mut rx, 1).0[0].payload, b"answer");

        let route = Route::to(peer.local_addr());
        drop(peer);
        connected.send(&route, b"to a closed port").unwrap();
        let refused = loop {
            match connected.recv(&mut rx) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.unwrap_err(),
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_port_on_all_addresses_answers_from_the_one_that_was_asked() {
    let all = port(Ipv4Addr::UNSPECIFIED.into(), Role::Shared);
    let asker = port(V4, Role::Single);
    let asked = IpAddr::from([127, 0, 0, 9]);
    asker.send(&Route::to(SocketAddr::new(asked, all.local_addr().port())), b"?").unwrap();
    let mut rx = RxBuffers::default();
    let (received, _) = receive(&all, &mut rx, 1);
    assert_eq!(received[0].local_ip, Some(asked));
    let answer = Route { source: received[0].local_ip, ..Route::to(received[0].from) };
    all.send(&answer, b"!").unwrap();
    assert_eq!(receive(&asker, &mut rx, 1).0[0].from.ip(), asked);
    let strange = Route { source: Some(V6), ..answer };
    assert_eq!(all.send(&strange, b"!").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_run_of_datagrams_is_taken_apart() {
    for ip in [V4, V6] {
        let (a, b) = (port(ip, Role::Relay), port(ip, Role::Single));
        let run: Vec<u8> = (0..10_500u32).map(|n| n.to_be_bytes()[3]).collect();
        let route = Route::to(a.local_addr());
        let mut rx = RxBuffers::default();
        // A single datagram goes before every run: the room that it needs beside its bytes is less.
        for _ in 0..3 {
            b.send(&Route::to(a.local_addr()), b"alone").unwrap();
            let contents = [IoSlice::new(&run)];
            let message = b.message(&route, Some(1000), 1).unwrap();
            b.send_all(&[message], &contents, |_, error| panic!("{error}"));
            let (received, calls) = receive(&a, &mut rx, 12);
            assert_eq!((received.len(), calls), (12, 1));
            assert_eq!(received[0].payload, b"alone");
            assert!(
                received[1..11].iter().all(|datagram| datagram.payload.len() == 1000 && datagram.ttl == 64)
            );
            let joined: Vec<u8> =
                received[1..].iter().flat_map(|datagram| datagram.payload.clone()).collect();
            assert_eq!(joined, run);
        }
    }
}

#[test]
fn an_offer_grows_with_the_traffic_and_a_batch_reports_an_empty_socket() {
    let (a, b) = (port(V4, Role::Shared), port(V4, Role::Single));
    let mut rx = RxBuffers::default();
    for (count, calls) in [(1, 1), (20, 3), (20, 2), (40, 2), (1, 1)] {
        for number in 0..count {
            // Lengths that differ, so that no two are joined to a run.
            b.send(&Route::to(a.local_addr()), &vec![0; count - number]).unwrap();
        }
        let (received, used) = receive(&a, &mut rx, count);
        assert_eq!((received.len(), used), (count, calls));
    }
}

#[test]
fn several_sockets_share_the_receive_buffers_until_they_are_full() {
    let (ports, sender) = ([(); 3].map(|()| port(V4, Role::Shared)), port(V4, Role::Single));
    let mut rx = RxBuffers::default();
    let all = rx.room();
    for number in 0..3 * all {
        sender.send(&Route::to(ports[number % 3].local_addr()), &number.to_be_bytes()).unwrap();
    }
    let mut batches = Vec::new();
    while rx.room() > 0 {
        batches.push(ports[batches.len() % 3].recv(&mut rx).unwrap());
    }
    assert!(!ports[0].recv(&mut rx).unwrap().is_drained(), "there is more, and no room");
    let number =
        |datagram: Datagram<'_>| usize::from_be_bytes(datagram.payload.as_bytes().try_into().unwrap());
    let received: Vec<Vec<usize>> =
        batches.iter().map(|batch| rx.datagrams(*batch).map(number).collect()).collect();
    assert_eq!(received.iter().map(Vec::len).sum::<usize>(), all);
    for (index, numbers) in received.iter().enumerate() {
        assert!(numbers.iter().all(|number| number % 3 == index % 3), "{numbers:?}");
    }
}

#[test]
fn a_header_goes_in_front_of_a_datagram_but_not_into_another_one() {
    let (a, b) = (port(V4, Role::Single), port(V4, Role::Single));
    let message = b.message(&Route::to(a.local_addr()), Some(3), 1).unwrap();
    b.send_all(&[message], &[IoSlice::new(b"onetwosix")], |_, error| panic!("{error}"));
    let mut rx = RxBuffers::default();
    let batch = a.recv(&mut rx).unwrap();
    let starts: Vec<_> = rx.datagrams(batch).map(|datagram| datagram.payload.offset().unwrap()).collect();
    assert_eq!(starts.len(), 3);
    assert!(rx.put_before(starts[0], b"head"));
    assert!(!rx.put_before(starts[1], b"head"), "the first one lies there");
    assert!(!rx.put_before(starts[0], &[0; 100]), "more than there is room for");
    assert_eq!(rx.slice(starts[0] - 4..starts[0] + 9).as_bytes(), b"headonetwosix");
    assert_eq!(RxSlice::outside(b"elsewhere").slice(1..3).offset(), None);
}

#[test]
fn a_closed_port_is_reported_and_costs_the_other_peers_nothing() {
    for ip in [V4, V6] {
        let relay = port(ip, Role::Relay);
        let (good, gone) = (port(ip, Role::Single), closed(ip));
        let mut rx = RxBuffers::default();
        let code = if ip.is_ipv4() { (3, 3) } else { (1, 4) };
        let expected = PeerError { peer: gone, icmp_type: code.0, icmp_code: code.1, data: [0; 4] };
        assert_eq!(errors(&relay), []);
        for _ in 0..100 {
            relay.send(&Route::to(gone), b"anybody?").unwrap();
            relay.send(&Route::to(good.local_addr()), b"out").unwrap();
            relay.send(&Route::to(gone), b"anybody?").unwrap();
            good.send(&Route::to(relay.local_addr()), b"in").unwrap();
            assert_eq!(receive(&relay, &mut rx, 1).0[0].payload, b"in");
            assert_eq!(errors(&relay), [expected]);
        }
        let (received, _) = receive(&good, &mut rx, 100);
        assert_eq!(received.len(), 100);
        assert_eq!(relay.recv(&mut rx).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn errors_are_found_where_nothing_else_happens() {
    let (relay, gone) = (port(V4, Role::Relay), closed(V4));
    let mut rx = RxBuffers::default();
    for number in 0..200u16 {
        relay.send(&Route::to(gone), &number.to_be_bytes()).unwrap();
    }
    assert_eq!(relay.recv(&mut rx).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut turns = 0;
    while !errors(&relay).is_empty() {
        turns += 1;
        assert!(turns < 5, "a turn takes many errors");
    }
    assert!(turns > 1, "a turn takes not all of a flood");
    assert_eq!(relay.recv(&mut rx).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_run_of_datagrams_leaves_with_one_call_and_arrives_one_by_one() {
    for ip in [V4, V6] {
        let (a, b) = (port(ip, Role::Single), port(ip, Role::Relay));
        let parts: Vec<_> =
            [&b"head1"[..], b"one", b"head2", b"two", b"head"].into_iter().map(IoSlice::new).collect();
        let route = Route { ttl: Some(9), tos: 0xb9, ..Route::to(a.local_addr()) };
        let messages = [b.message(&route, Some(8), 5).unwrap(), b.message(&route, None, 2).unwrap()];
        let parts = [&parts[..], &parts[..2]].concat();
        b.send_all(&messages, &parts, |_, error| panic!("{error}"));
        let (received, _) = receive(&a, &mut RxBuffers::default(), 4);
        let payloads: Vec<_> = received.iter().map(|datagram| datagram.payload.as_slice()).collect();
        assert_eq!(payloads, [&b"head1one"[..], b"head2two", b"head", b"head1one"]);
        assert!(received.iter().all(|datagram| (datagram.ttl, datagram.tos) == (9, 0xb9)));
    }
}

#[test]
fn df_is_switched_for_the_datagrams_that_want_it() {
    for ip in [V4, V6] {
        let (a, b) = (port(ip, Role::Relay), port(ip, Role::Single));
        let set = |port: &BatchUdpSocket| match ip {
            IpAddr::V4(_) => ip_mtu_discover(port).unwrap() == Ipv4PathMtuDiscovery::PROBE,
            IpAddr::V6(_) => ipv6_mtu_discover(port).unwrap() == Ipv6PathMtuDiscovery::PROBE,
        };
        for dont_fragment in [false, true, true, false, true] {
            a.send(&Route { dont_fragment, ..Route::to(b.local_addr()) }, b"x").unwrap();
            assert_eq!(set(&a), dont_fragment);
        }
        assert_eq!(receive(&b, &mut RxBuffers::default(), 5).0.len(), 5);
    }
}

#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn say_skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Runs the test of that name, which is to be ignored otherwise, in a network of its own whose loopback has the usual MTU.
fn in_a_narrow_network(test: &str) {
    let script = "ip link set lo mtu 1500 up && echo inside && exec \"$0\" --exact \"$1\" --ignored";
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare").args(["-rn", "sh", "-c", script]).arg(this).arg(test).output();
    let Some(output) = output.ok().filter(|output| output.stdout.starts_with(b"inside")) else {
        return say_skipped("no network namespaces here");
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn too_large_for_df_is_an_error_of_that_datagram_alone() {
    in_a_narrow_network("net::udp::tests::oversize_datagrams_in_a_narrow_network");
}

#[test]
#[ignore = "runs inside `too_large_for_df_is_an_error_of_that_datagram_alone`"]
fn oversize_datagrams_in_a_narrow_network() {
    for ip in [V4, V6] {
        let (relay, peer) = (port(ip, Role::Relay), port(ip, Role::Single));
        let mut rx = RxBuffers::default();
        let large = [1; 4000];
        let free = Route::to(peer.local_addr());
        let fixed = Route { dont_fragment: true, ..free };
        for _ in 0..3 {
            relay.send(&free, &large).unwrap();
            assert_eq!(relay.send(&fixed, &large).unwrap_err().raw_os_error(), Some(Errno::EMSGSIZE as i32));
            relay.send(&fixed, b"small").unwrap();
            relay.send(&free, &large).unwrap();
            let (received, _) = receive(&peer, &mut rx, 3);
            let lengths: Vec<_> = received.iter().map(|datagram| datagram.payload.len()).collect();
            assert_eq!(lengths, [4000, 5, 4000]);
            assert_eq!(relay.recv(&mut rx).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let (icmp_type, icmp_code) = if ip.is_ipv4() { (3, 4) } else { (2, 0) };
            let narrow = PeerError { peer: peer.local_addr(), icmp_type, icmp_code, data: [0, 0, 5, 220] };
            assert_eq!(errors(&relay), [narrow]);
        }
        // A port without an error queue gives the sender the same error.
        assert_eq!(peer.send(&fixed, &large).unwrap_err().raw_os_error(), Some(Errno::EMSGSIZE as i32));
    }
}
