use super::*;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// A router that grants what it is asked for at this address, and records each request for a mapping.
async fn router(at: &str, external: [u8; 4]) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let socket = UdpSocket::bind((at, wire::PORT)).await.unwrap();
    let (requests, requests_rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 1100];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let request = &buffer[..len];
            let answer = match request {
                [0, 0] => [&[0, 128, 0, 0, 0, 0, 0, 1][..], &external].concat(),
                [0, opcode, ..] => {
                    [&[0, 128 | opcode, 0, 0, 0, 0, 0, 1], &request[4..6], &[0x13, 0x88], &request[8..12]]
                        .concat()
                }
                // PCP is unknown here.
                _ => vec![0, 129, 0, 1, 0, 0, 0, 1],
            };
            if request.len() > 2 && request[0] == 0 {
                let _ = requests.send(request.to_vec());
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    requests_rx
}

fn lease(internal: &str) -> Lease {
    let wanted = WantedMapping { protocol: MappedProtocol::Udp, internal: internal.parse().unwrap() };
    Lease::new(wanted, MAPPINGS.try_acquire().unwrap())
}

#[tokio::test]
async fn a_router_of_nat_pmp_maps_and_unmaps() {
    let mut requests = router("127.0.77.1", [203, 0, 113, 7]).await;
    let gateway = Gateway { address: [127, 0, 77, 1].into(), scope_id: 0 };
    let local = IpAddr::from([127, 0, 0, 1]);
    let router = pcp::search(gateway, local).await.unwrap();
    let mut lease = lease("127.0.0.1:4000");
    let mapped = router.map(&mut lease, LIFETIME).await;
    assert_eq!(mapped, Some(("203.0.113.7:5000".parse().unwrap(), LIFETIME)));
    assert_eq!(lease.external_port, 5000, "a renewal asks for the same port");
    assert_eq!(requests.recv().await.unwrap()[8..], 3600_u32.to_be_bytes());
    router.unmap(&lease).await;
    assert_eq!(requests.recv().await.unwrap()[6..], [0; 6], "no port, no lifetime");
}

/// Answers requests by HTTP as the firewall service does; records the actions. The first pinhole is forgotten before it is renewed.
async fn firewall(listener: TcpListener, requests: mpsc::UnboundedSender<String>) {
    let mut next_id = 7;
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut request = Vec::new();
        while !upnp_message::is_complete(&request) {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let request = String::from_utf8(request).unwrap();
        let action = request.split('#').nth(1).unwrap().split('"').next().unwrap().to_owned();
        let (status, body) = match action.as_str() {
            "AddPinhole" => {
                next_id += 1;
                ("200 OK", format!("<UniqueID>{next_id}</UniqueID>"))
            }
            "UpdatePinhole" if request.contains("<UniqueID>8<") => {
                ("500 Error", "<errorCode>704</errorCode>".to_owned())
            }
            _ => ("200 OK", String::new()),
        };
        requests.send(action).unwrap();
        let response = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(response.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_pinhole_is_opened_renewed_opened_again_if_it_is_forgotten_and_closed() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, mut requests_rx) = mpsc::unbounded_channel();
    tokio::spawn(firewall(listener, requests));
    let control = upnp_message::Location { address, path: "/ctl".to_owned() };
    let service = upnp_message::ConnectionService { control, kind: upnp_message::FIREWALL_SERVICES[0] };
    let router = Router::Firewall(FirewallRouter { service });
    let mut lease = lease("[::1]:4000");
    for id in [8, 9, 9] {
        let opened = router.map(&mut lease).await;
        assert_eq!((opened, lease.pinhole), (Some(("[::1]:4000".parse().unwrap(), LIFETIME)), Some(id)));
    }
    router.unmap(&mut lease).await;
    let actions: Vec<String> = std::iter::from_fn(|| requests_rx.try_recv().ok()).collect();
    assert_eq!(actions, ["AddPinhole", "UpdatePinhole", "AddPinhole", "UpdatePinhole", "DeletePinhole"]);
}

#[tokio::test]
async fn a_router_without_the_protocols_is_given_up() {
    let gateway = Gateway { address: [127, 0, 77, 2].into(), scope_id: 0 };
    assert!(pcp::search(gateway, [127, 0, 0, 1].into()).await.is_none());
}

#[tokio::test]
async fn an_endless_description_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).await.unwrap();
        let mut sent = 0_usize;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {
            sent += 4096;
        }
        sent
    });
    let local = IpAddr::from([127, 0, 0, 1]);
    let response = upnp::exchange(address, local, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert!((upnp_message::MAX_RESPONSE..2 * upnp_message::MAX_RESPONSE).contains(&response.len()));
    assert!(server.await.unwrap() >= response.len());
}

#[test]
fn a_private_address_of_the_router_is_not_public() {
    for (address, expected) in [
        ("203.0.113.7:4000", true),
        ("[2001:db8::7]:4000", true),
        ("192.168.1.7:4000", false),
        ("100.64.0.7:4000", false),
        ("127.0.0.1:4000", false),
        ("0.0.0.0:4000", false),
        ("224.0.0.1:4000", false),
        ("203.0.113.7:0", false),
    ] {
        assert_eq!(is_public(address.parse::<SocketAddr>().unwrap()), expected, "{address}");
    }
}

#[test]
fn only_a_port_behind_the_router_is_mapped() {
    let gateway = |address: &str| Gateway { address: address.parse().unwrap(), scope_id: 0 };
    let wanted =
        |internal: &str| WantedMapping { protocol: MappedProtocol::Udp, internal: internal.parse().unwrap() };
    assert!(!is_mappable(&wanted("203.0.113.7:4000"), gateway("203.0.113.1")), "it needs no mapping");
    assert!(!is_mappable(&wanted("10.255.255.7:4000"), gateway("127.0.0.1")), "another route");
    assert!(is_mappable(&wanted("[2001:db8::7]:4000"), gateway("fe80::1")));
    assert!(!is_mappable(&wanted("[fe80::7]:4000"), gateway("fe80::1")));
    assert!(!is_mappable(&wanted("[2001:db8::7]:4000"), gateway("10.0.0.1")));
}

#[tokio::test]
async fn a_mapper_that_is_disabled_does_nothing() {
    let mut mapper = PortMapper::start(false);
    let wanted = WantedMapping { protocol: MappedProtocol::Udp, internal: "10.0.0.5:4000".parse().unwrap() };
    mapper.set(vec![wanted]);
    assert!(mapper.tasks.is_empty());
    assert!(futures_util::FutureExt::now_or_never(mapper.next()).is_none());
    mapper.close().await;
}

#[tokio::test]
async fn a_mapping_is_renewed_told_once_and_deleted() {
    let mut requests = router("127.0.77.3", [203, 0, 113, 7]).await;
    let gateway = Gateway { address: [127, 0, 77, 3].into(), scope_id: 0 };
    let pcp = pcp::search(gateway, [127, 0, 0, 1].into()).await.unwrap();
    let (_goal, goal) = watch::channel(Goal::default());
    let (events, mut events_rx) = mpsc::channel(QUEUE);
    let lease = lease("127.0.0.1:4001");
    let wanted = lease.wanted;
    let mut task = MapperTask {
        is_v4: true,
        goal,
        events,
        gateway: Some(gateway),
        router: Some(Router::Pcp(pcp)),
        searches: 0,
        renewals: 0,
        leases: vec![lease],
    };
    let goal = |renewals, wanted| Goal { wanted, renewals, searches: 0 };
    for renewals in [0, 0, 1] {
        task.work(&goal(renewals, vec![wanted])).await;
        assert!(task.leases[0].renew_at > time::now().mono + LIFETIME / 2 - Duration::from_secs(60));
    }
    assert_eq!(events_rx.try_recv(), Ok(MappingEvent::Mapped(wanted, "203.0.113.7:5000".parse().unwrap())));
    assert!(events_rx.try_recv().is_err(), "the address is the same");
    task.work(&goal(1, Vec::new())).await;
    assert_eq!(events_rx.try_recv(), Ok(MappingEvent::Lost(wanted)));
    drop(task);
    let lifetimes: Vec<Vec<u8>> =
        std::iter::from_fn(|| requests.try_recv().ok()).map(|request| request[8..].to_vec()).collect();
    assert_eq!(lifetimes, [3600_u32, 3600, 0].map(|seconds| seconds.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn a_private_address_is_neither_told_nor_kept() {
    let _requests = router("127.0.77.4", [192, 168, 1, 7]).await;
    let gateway = Gateway { address: [127, 0, 77, 4].into(), scope_id: 0 };
    let pcp = pcp::search(gateway, [127, 0, 0, 1].into()).await.unwrap();
    let (_goal, goal) = watch::channel(Goal::default());
    let (events, mut events_rx) = mpsc::channel(QUEUE);
    let mut task = MapperTask {
        is_v4: true,
        goal,
        events,
        gateway: Some(gateway),
        router: Some(Router::Pcp(pcp)),
        searches: 0,
        renewals: 0,
        leases: Vec::new(),
    };
    let wanted = WantedMapping { protocol: MappedProtocol::Tcp, internal: "127.0.0.1:4002".parse().unwrap() };
    task.map_all(&[wanted]).await;
    assert!(task.leases.is_empty());
    assert!(events_rx.try_recv().is_err());
}
