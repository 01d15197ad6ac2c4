//! Random events: no sequence of them breaks the relay's rules.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Allocate(u16),
    Refresh(u16, u32),
    Permit(u16, u8),
    Bind(u16, u16, u8),
    Indicate(u16, u8),
    Channel(u16, u16),
    FromPeer(usize, u8),
    Wait(u16),
    Garbage(u16, Vec<u8>),
}

fn any_event() -> impl Strategy<Value = Event> {
    let client = 1..5_u16;
    let peer = 0..6_u8;
    prop_oneof![
        client.clone().prop_map(Event::Allocate),
        (client.clone(), prop_oneof![Just(0_u32), Just(600), Just(3600)])
            .prop_map(|(c, l)| Event::Refresh(c, l)),
        (client.clone(), peer.clone()).prop_map(|(c, p)| Event::Permit(c, p)),
        (client.clone(), 0x4000..0x4004_u16, peer.clone()).prop_map(|(c, n, p)| Event::Bind(c, n, p)),
        (client.clone(), peer.clone()).prop_map(|(c, p)| Event::Indicate(c, p)),
        (client.clone(), 0x4000..0x4004_u16).prop_map(|(c, n)| Event::Channel(c, n)),
        (0..6_usize, peer).prop_map(|(id, p)| Event::FromPeer(id, p)),
        (0..400_u16).prop_map(Event::Wait),
        (client, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(c, b)| Event::Garbage(c, b)),
    ]
}

proptest! {
    /// No relay without a permission that was granted at most 300 s ago, sockets and ports and quota in step, nothing
    /// outlives its lifetime.
    #[test]
    fn every_sequence_of_events_keeps_the_invariants_of_the_relay(
        events in proptest::collection::vec(any_event(), 1..60),
    ) {
        let mut server = TestRelay::with(shared(3, 50_000..=50_001));
        let peer = |p: u8| if p == 5 { "127.0.0.1:7".to_owned() } else { format!("8.8.8.{p}:7") };
        let mut granted: HashMap<(u16, u8), Now> = HashMap::new();
        for event in events {
            match event {
                Event::Allocate(c) => drop(server.request(c, "alice", Method::ALLOCATE, udp)),
                Event::Refresh(c, lifetime) => {
                    if server.refresh(c, "alice", lifetime) == 0 && lifetime == 0 {
                        granted.retain(|(client, _), _| *client != c);
                    }
                }
                Event::Permit(c, p) => if server.create_permission(c, &peer(p)) == 0 { granted.insert((c, p), server.now); },
                Event::Bind(c, n, p) => if server.bind_channel(c, n, &peer(p)) == 0 { granted.insert((c, p), server.now); },
                Event::Indicate(c, p) => if server.send_from(c, &peer(p)) {
                    let since = server.now.mono - granted[&(c, p)].mono;
                    prop_assert!(p != 5 && since < Duration::from_secs(300));
                },
                Event::Channel(c, n) => {
                    let [high, low] = n.to_be_bytes();
                    let bytes = [high, low, 0, 0];
                    if let Some(forward) = server.forward_to_peer(tuple(c), &bytes) {
                        let p = (0..6).find(|p| addr(&peer(*p)) == forward.peer).unwrap();
                        prop_assert!(server.now.mono - granted[&(c, p)].mono < Duration::from_secs(300));
                    }
                }
                Event::FromPeer(id, p) => {
                    let client = server.relay.handle_peer(server.now, id, addr(&peer(p)), IP_HEADER, b"x").ok().map(|f| f.client);
                    if let Some(client) = client {
                        prop_assert!(server.sockets.contains_key(&id));
                        prop_assert!(server.now.mono - granted[&(client.client.port(), p)].mono < Duration::from_secs(300));
                    }
                }
                Event::Wait(seconds) => server.advance(seconds.into()),
                Event::Garbage(c, bytes) => drop(server.forward_to_peer(tuple(c), &bytes)),
            }
            server.drain();
            prop_assert_eq!(server.shared.ports.leased() as usize, server.sockets.len());
            prop_assert_eq!(server.sockets.len(), server.relay.len());
            prop_assert_eq!(server.relay.len() as u32, server.shared.quota.held());
            prop_assert!(server.sockets.values().all(|address| server.shared.ports.is_leased(*address)));
            prop_assert!(server.relay.poll_timeout().is_none_or(|at| at > server.now.mono));
        }
        server.advance(3600);
        prop_assert!(server.relay.is_empty() && server.sockets.is_empty());
        prop_assert_eq!((server.shared.quota.held(), server.shared.ports.leased()), (0, 0));
    }
}
