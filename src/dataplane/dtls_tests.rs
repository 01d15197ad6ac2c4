use super::*;
use crate::net::time::now;
use proptest::prelude::*;
use tokio_rustls::rustls;

const SERVER: &str = "198.51.100.1:3478";

fn ends(port: u16) -> Ends {
    (SocketAddr::from(([192, 0, 2, 9], port)), SERVER.parse().unwrap())
}

fn server(now: Now) -> Dtls {
    use rand::SeedableRng;
    let folder = tempfile::tempdir().unwrap();
    let identity = DtlsIdentity::new(&Certificate::own(folder.path()).unwrap(), folder.path()).unwrap();
    Dtls::new(now, identity, ChaCha20Rng::from_seed([3; 32]))
}

impl Dtls {
    /// Takes a datagram while there is no limit on handshakes but that of each client.
    fn hear(&mut self, now: Now, ends: Ends, datagram: &[u8]) -> bool {
        self.handle_datagram(now, ends, datagram, || true)
    }
}

/// A client of the crate's own, and what it has seen.
struct Client {
    engine: dimpl::Dtls,
    ends: Ends,
    connected: bool,
    closed: bool,
    received: Vec<Vec<u8>>,
}

impl Client {
    fn new(now: Now, server: &Dtls, ends: Ends) -> Self {
        let DtlsIdentity { config, certificate } = server.identity.clone();
        let mut engine = dimpl::Dtls::new_12(config, certificate, now.mono);
        engine.set_active(true);
        engine.handle_timeout(now.mono).unwrap();
        Self { engine, ends, connected: false, closed: false, received: Vec::new() }
    }

    /// Returns all packets that it has to send.
    fn poll(&mut self) -> Vec<Vec<u8>> {
        let (mut buffer, mut packets) = (vec![0; MAX_DATAGRAM], Vec::new());
        loop {
            match self.engine.poll_output(&mut buffer) {
                dimpl::Output::Packet(bytes) => packets.push(bytes.to_vec()),
                dimpl::Output::Connected => self.connected = true,
                dimpl::Output::CloseNotify => self.closed = true,
                dimpl::Output::ApplicationData(bytes) => self.received.push(bytes.to_vec()),
                dimpl::Output::Timeout(_) => return packets,
                _ => {}
            }
        }
    }

    /// Exchanges packets until neither side has any; returns the frames that the server received, and its closed sessions.
    fn talk(&mut self, now: Now, server: &mut Dtls) -> (Vec<Vec<u8>>, usize) {
        let (mut frames, mut remove_closed) = (Vec::new(), 0);
        loop {
            let packets = self.poll();
            for packet in &packets {
                server.hear(now, self.ends, packet);
            }
            let mut quiet = packets.is_empty();
            while let Some(output) = server.poll_output() {
                quiet = false;
                match output {
                    Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. } => {
                        self.engine.handle_packet(&bytes).unwrap()
                    }
                    Output::Frame { client, bytes } => {
                        assert_eq!(client, tuple(self.ends));
                        frames.push(bytes);
                    }
                    Output::Closed { .. } => remove_closed += 1,
                }
            }
            if quiet {
                return (frames, remove_closed);
            }
        }
    }
}

fn connected(now: Now, server: &mut Dtls, ends: Ends) -> Client {
    let mut client = Client::new(now, server, ends);
    client.talk(now, server);
    assert!(client.connected);
    client
}

#[test]
fn a_client_passes_the_exchange_and_frames_go_both_ways_until_close_notify() {
    let now = now();
    let mut server = server(now);
    let mut client = connected(now, &mut server, ends(1));
    for length in [1, 1200, 9000] {
        client.engine.send_application_data(&vec![7; length]).unwrap();
        assert_eq!(client.talk(now, &mut server), (vec![vec![7; length]], 0));
        assert!(server.send(tuple(client.ends), &vec![8; length]));
        client.talk(now, &mut server);
        assert_eq!(client.received.pop(), Some(vec![8; length]));
    }
    client.engine.close().unwrap();
    assert_eq!(client.talk(now, &mut server), (Vec::new(), 1));
    assert!(server.sessions.is_empty() && server.quota.total() == 0 && server.poll_timeout().is_none());
    assert!(!server.send(tuple(client.ends), b"nobody"));
}

#[test]
fn a_million_first_hellos_leave_no_session() {
    let now = now();
    let mut server = server(now);
    let hello = Client::new(now, &server, ends(1)).poll().remove(0);
    let mut answered = 0;
    for number in 0..1_000_000_u32 {
        let address = SocketAddr::from((number.to_be_bytes(), 5000));
        assert!(server.hear(now, (address, ends(1).1), &hello));
        while let Some(Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. }) =
            server.poll_output()
        {
            answered += 1;
            assert!(bytes.len() < hello.len());
        }
    }
    assert_eq!(answered, 1_000_000);
    assert!(server.sessions.is_empty() && server.quota.total() == 0 && server.deadlines.is_empty());
    assert!(server.outputs.capacity() < 16);
}

#[test]
fn what_is_no_hello_makes_no_session_and_gets_no_answer() {
    let now = now();
    let mut server = server(now);
    for start in 0x14..=0x19_u8 {
        for kind in 0..=20 {
            let mut record = vec![start, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, kind];
            record.resize(25, 0);
            assert!(!server.hear(now, ends(1), &record), "{start} {kind}");
        }
    }
    assert!(!server.hear(now, ends(1), &[0x16]));
    assert!(server.sessions.is_empty() && server.poll_output().is_none());
}

#[test]
fn garbage_from_the_address_of_a_session_does_not_end_it() {
    use rand::{RngCore, SeedableRng};
    let now = now();
    let mut server = server(now);
    let mut client = connected(now, &mut server, ends(1));
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    for round in 0..20_000_usize {
        let mut garbage = vec![0; round % 90 + 1];
        rng.fill_bytes(&mut garbage);
        garbage[0] = 0x14 + garbage[0] % 6;
        if garbage.len() > 13 {
            // A header that holds, so that what is behind it is looked at.
            let length = u16::try_from(garbage.len() - 13).unwrap().to_be_bytes();
            garbage[1..5].copy_from_slice(&[0xFE, 0xFD, 0, u8::from(round % 3 > 0)]);
            garbage[11..13].copy_from_slice(&length);
        }
        server.hear(now, client.ends, &garbage);
        while let Some(output) = server.poll_output() {
            assert!(!matches!(output, Output::Closed { .. }), "round {round}: {garbage:?}");
        }
    }
    client.engine.send_application_data(b"still here").unwrap();
    assert_eq!(client.talk(now, &mut server).0, [b"still here"]);
}

#[test]
fn a_handshake_that_stalls_ends_after_ten_seconds() {
    let start = now();
    let mut server = server(start);
    let mut client = Client::new(start, &server, ends(1));
    let hello = client.poll().remove(0);
    server.hear(start, client.ends, &hello);
    let Some(Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. }) = server.poll_output() else {
        panic!("no request to verify")
    };
    client.engine.handle_packet(&bytes).unwrap();
    let second = client.poll().remove(0);
    server.hear(start, client.ends, &second);
    assert_eq!(server.sessions.len(), 1);
    let mut time = start;
    while let Some(at) = server.poll_timeout() {
        assert!(at <= start.mono + HANDSHAKE_TIME);
        time = start.after(at.max(time.mono) - start.mono);
        server.handle_timeout(time);
    }
    assert!(server.sessions.is_empty() && server.quota.total() == 0);
    let sent = std::iter::from_fn(|| server.poll_output());
    let sent: usize = sent
        .map(|output| {
            if let Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. } = output {
                bytes.len()
            } else {
                0
            }
        })
        .sum();
    assert!(sent < 12_000, "{sent} bytes of retransmissions");
}

#[test]
fn silence_ends_a_session_sooner_without_credentials() {
    let start = now();
    for (authenticated, idle) in [(false, IDLE_UNAUTHENTICATED), (true, IDLE_AUTHENTICATED)] {
        let mut server = server(start);
        let mut client = connected(start, &mut server, ends(1));
        if authenticated {
            server.mark_authenticated(tuple(client.ends));
        }
        let almost = start.after(idle - Duration::from_secs(1));
        server.handle_timeout(almost);
        client.engine.handle_timeout(almost.mono).unwrap();
        client.engine.send_application_data(b"x").unwrap();
        assert_eq!(client.talk(almost, &mut server), (vec![b"x".to_vec()], 0));
        let next = almost.after(idle - Duration::from_secs(1));
        server.handle_timeout(next);
        assert_eq!(server.sessions.len(), 1);
        let end = almost.after(idle);
        server.handle_timeout(end);
        assert_eq!(client.talk(end, &mut server).1, 1);
        assert!(client.closed && server.sessions.is_empty());
    }
}

#[test]
fn a_network_has_so_many_sessions_and_no_more() {
    let now = now();
    let mut server = server(now);
    let mut client = connected(now, &mut server, ends(1));
    let network = NetworkPrefix::subscriber(client.ends.0.ip());
    let _others = server.quota.acquire(network, MAX_PER_NETWORK - 1).unwrap();
    let mut refused = Client::new(now, &server, ends(2));
    refused.talk(now, &mut server);
    assert!(!refused.connected && server.sessions.len() == 1);
    let elsewhere = (SocketAddr::from(([192, 0, 2, 10], 1)), ends(1).1);
    connected(now, &mut server, elsewhere);
    client.engine.close().unwrap();
    client.talk(now, &mut server);
    connected(now.after(RESTART_TIME), &mut server, ends(2));
}

#[test]
fn a_client_that_begins_anew_takes_the_place_of_its_old_session() {
    let now = now();
    let mut server = server(now);
    connected(now, &mut server, ends(1));
    let now = now.after(RESTART_TIME);
    let mut again = Client::new(now, &server, ends(1));
    assert_eq!(again.talk(now, &mut server).1, 1);
    assert!(again.connected && server.sessions.len() == 1);
    again.engine.send_application_data(b"new").unwrap();
    assert_eq!(again.talk(now, &mut server).0, [b"new"]);
}

/// A ClientHello with a good cookie.
fn admitted_hello(now: Now, server: &mut Dtls, ends: Ends) -> Vec<u8> {
    let mut client = Client::new(now, server, ends);
    let hello = client.poll().remove(0);
    server.hear(now, ends, &hello);
    let Some(Output::Challenge { bytes, .. }) = server.poll_output() else { panic!("no request to verify") };
    client.engine.handle_packet(&bytes).unwrap();
    client.poll().remove(0)
}

#[test]
fn a_client_restarts_its_handshake_once_a_second_however_many_cookies_it_has() {
    let start = now();
    let mut server = server(start);
    let hellos: Vec<_> = (0..16).map(|client| admitted_hello(start, &mut server, ends(client % 8))).collect();
    let asked = Cell::new(0);
    // Two hellos in turn from each of eight ports, as fast as they come, for three seconds.
    for round in 0..3000_u16 {
        let now = start.after(Duration::from_millis(u64::from(round)));
        let client = round % 8;
        let hello = &hellos[usize::from(client + round / 8 % 2 * 8)];
        server.handle_datagram(now, ends(client), hello, || {
            asked.set(asked.get() + 1);
            true
        });
        while server.poll_output().is_some() {}
    }
    assert_eq!((asked.get(), server.sessions.len()), (8 * 3, 8));
    // An end of the session in between makes no difference.
    let now = start.after(Duration::from_secs(4));
    server.remove(ends(1));
    assert!(server.hear(now, ends(1), &hellos[1]));
    server.remove(ends(1));
    assert!(!server.hear(now, ends(1), &hellos[1]) && !server.hear(now, ends(1), &hellos[9]));
    let later = now.after(RESTART_TIME);
    assert!(server.hear(later, ends(1), &hellos[9]));
    assert_eq!((server.begun.len(), server.recent.len()), (1, 1));
}

#[test]
fn a_handshake_that_is_not_admitted_leaves_everything_as_it_was() {
    let start = now();
    let mut server = server(start);
    let mut client = connected(start, &mut server, ends(1));
    let now = start.after(RESTART_TIME);
    let hello = admitted_hello(now, &mut server, ends(1));
    assert!(!server.handle_datagram(now, ends(1), &hello, || false));
    assert!(server.poll_output().is_none() && server.recent.is_empty());
    client.engine.send_application_data(b"still here").unwrap();
    assert_eq!(client.talk(now, &mut server).0, [b"still here"]);
}

#[test]
fn a_client_that_would_rather_speak_1_3_falls_back() {
    let now = now();
    let mut server = server(now);
    let mut client = Client::new(now, &server, ends(1));
    let DtlsIdentity { config, certificate } = server.identity.clone();
    client.engine = dimpl::Dtls::new_auto(config, certificate, now.mono);
    client.engine.set_active(true);
    client.engine.handle_timeout(now.mono).unwrap();
    client.talk(now, &mut server);
    assert!(client.connected);
}

#[test]
fn a_lost_flight_is_sent_again() {
    let start = now();
    let mut server = server(start);
    let mut client = Client::new(start, &server, ends(1));
    for hello in 0..2 {
        for packet in client.poll() {
            server.hear(start, client.ends, &packet);
        }
        while let Some(Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. }) =
            server.poll_output()
        {
            // The request to verify arrives, the server's flight does not.
            if hello == 0 {
                client.engine.handle_packet(&bytes).unwrap();
            }
        }
    }
    let later = start.after(Duration::from_secs(3));
    server.handle_timeout(later);
    client.engine.handle_timeout(later.mono).unwrap();
    client.talk(later, &mut server);
    assert!(client.connected);
}

thread_local! {
    /// Whether the crate's next HMAC panics.
    static TRIPS: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
struct Tripping;

static TRIPPING: Tripping = Tripping;

impl HmacProvider for Tripping {
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        assert!(!TRIPS.replace(false), "an assertion deep inside");
        COOKIE_HMAC.hmac_sha256(key, data)
    }

    fn hmac(
        &self,
        hash: HashAlgorithm,
        key: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        assert!(!TRIPS.replace(false), "an assertion deep inside");
        COOKIE_HMAC.hmac(hash, key, data, out)
    }
}

/// A server whose engines panic on request.
fn fragile(now: Now) -> Dtls {
    let mut server = server(now);
    let provider = CryptoProvider { hmac_provider: &TRIPPING, ..rust_crypto::default_provider() };
    let config = dimpl::Config::builder()
        .with_crypto_provider(provider)
        .require_client_certificate(false)
        .build()
        .unwrap();
    server.identity.config = Arc::new(config);
    server
}

#[test]
fn an_engine_that_panics_ends_its_own_session_alone() {
    let now = now();
    let mut server = fragile(now);
    let mut other = connected(now, &mut server, ends(1));
    let mut remove_closed = 0;
    for attempt in 0..2 {
        let now = now.after(RESTART_TIME * u32::try_from(attempt).unwrap());
        // The first panics over the ClientHello that makes its session, the second over its key exchange.
        let client = &mut Client::new(now, &server, ends(2));
        for flight in 0..3 {
            for packet in client.poll() {
                TRIPS.set(flight == attempt + 1);
                server.hear(now, client.ends, &packet);
                TRIPS.set(false);
            }
            while let Some(output) = server.poll_output() {
                match output {
                    Output::Closed { client: who } => {
                        assert_eq!(who, tuple(client.ends));
                        remove_closed += 1;
                    }
                    Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. } => {
                        let _ = client.engine.handle_packet(&bytes);
                    }
                    Output::Frame { .. } => panic!("nothing was said"),
                }
            }
        }
        assert!(!client.connected);
        assert_eq!((server.failed_engines.engines, server.sessions.len()), (attempt + 1, 1));
    }
    assert_eq!(remove_closed, 1, "the first never had a session");
    assert!(EXPECTED_COOKIE.get().is_none(), "no cookie is left behind for the next one");
    other.engine.send_application_data(b"still here").unwrap();
    assert_eq!(other.talk(now, &mut server).0, [b"still here"]);
    connected(now.after(2 * RESTART_TIME), &mut server, ends(2));
    assert_eq!(server.quota.total(), 2);
}

#[test]
fn an_engine_that_panicked_is_never_used_again_and_the_operator_hears_of_it_once_a_minute() {
    let start = now();
    let mut server = server(start);
    let mut client = connected(start, &mut server, ends(1));
    let engine = &mut server.sessions.get_mut(&client.ends).unwrap().engine;
    assert_eq!(engine.run(|_| 1), Some(1));
    assert_eq!(engine.run(|_| -> u8 { panic!("an assertion deep inside") }), None);
    assert_eq!(engine.run(|_| 1), None);
    client.engine.send_application_data(b"x").unwrap();
    assert_eq!(client.talk(start, &mut server), (Vec::new(), 1));
    assert_eq!((server.failed_engines.engines, server.failed_engines.last_warning), (1, None));
    for (seconds, told) in [(0, (1, 0)), (1, (1, 0)), (59, (1, 0)), (60, (3, 60)), (200, (3, 60))] {
        server.failed_engines.engines = server.failed_engines.engines.max(if seconds > 0 { 3 } else { 1 });
        server.handle_timeout(start.after(Duration::from_secs(seconds)));
        let (engines, after) = told;
        assert_eq!(
            server.failed_engines.last_warning,
            Some((engines, start.mono + Duration::from_secs(after)))
        );
    }
}

#[test]
fn records_outside_encryption_follow_on_the_clients_number() {
    let record =
        |epoch, number: u8| [vec![22, 254, 253, 0, epoch, 0, 0, 0, 0, 0, number, 0, 2], vec![0; 2]].concat();
    let mut datagram = [record(0, 1), record(0, 2), record(1, 0)].concat();
    renumber(&mut datagram, 4);
    assert_eq!(datagram, [record(0, 5), record(0, 6), record(1, 0)].concat());
    let mut short = record(0, 1);
    short.truncate(14);
    renumber(&mut short, 4);
    assert_eq!(short[10], 5);
}

#[test]
fn a_certificate_that_dtls_cannot_use_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let own = Certificate::own(folder.path()).unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let foreign =
        rcgen::CertificateParams::new(["turn.example.org".to_owned()]).unwrap().self_signed(&key).unwrap();
    let certificate = Certificate {
        chain: vec![foreign.der().clone()],
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        self_signed: false,
        files: String::new(),
    };
    let identity = DtlsIdentity::new(&certificate, folder.path()).unwrap();
    assert_eq!(identity.certificate.certificate, own.chain[0].to_vec());
}

/// What happens to one datagram on its way to the server.
#[derive(Debug, Clone)]
enum Mischief {
    Change {
        at: usize,
        to: u8,
    },
    /// Of the record's and the message's header: types, epochs, numbers, lengths, fragments.
    ChangeHeader {
        at: usize,
        to: u8,
    },
    Cut(usize),
    Grow(u8),
    Repeat,
    Lose,
    /// An earlier datagram comes again, of this handshake or of the one before.
    Replay(usize),
    /// Behind it, in the same datagram, comes an earlier one.
    Join(usize),
    /// The one datagram becomes two, cut between or within records.
    Split(usize),
    Wait(u64),
}

fn mischief() -> impl Strategy<Value = Option<Mischief>> {
    let one = prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Mischief::Change { at, to }),
        (0..25_usize, any::<u8>()).prop_map(|(at, to)| Mischief::ChangeHeader { at, to }),
        (0..25_usize, 0..8_u8).prop_map(|(at, to)| Mischief::ChangeHeader { at, to }),
        any::<usize>().prop_map(Mischief::Cut),
        any::<u8>().prop_map(Mischief::Grow),
        Just(Mischief::Repeat),
        Just(Mischief::Lose),
        any::<usize>().prop_map(Mischief::Replay),
        any::<usize>().prop_map(Mischief::Join),
        any::<usize>().prop_map(Mischief::Split),
        (0..12_u64).prop_map(Mischief::Wait),
    ];
    proptest::option::weighted(0.4, one)
}

/// The datagrams that arrive in place of `packet`.
fn mistreated(mischief: &Mischief, mut packet: Vec<u8>, past: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let earlier = |which: usize| past[which % past.len()].clone();
    match *mischief {
        Mischief::Change { at, to } | Mischief::ChangeHeader { at, to } => {
            let at = at % packet.len();
            packet[at] = to;
            vec![packet]
        }
        Mischief::Cut(at) => vec![packet[..at % packet.len()].to_vec()],
        Mischief::Grow(byte) => vec![[packet, vec![byte; usize::from(byte)]].concat()],
        Mischief::Repeat => vec![packet.clone(), packet],
        Mischief::Lose => vec![],
        Mischief::Replay(which) => vec![earlier(which), packet],
        Mischief::Join(which) => vec![[packet, earlier(which)].concat()],
        Mischief::Split(at) => {
            let rest = packet.split_off(at % packet.len());
            vec![packet, rest]
        }
        Mischief::Wait(_) => vec![packet],
    }
}

fn identity() -> DtlsIdentity {
    static IDENTITY: std::sync::OnceLock<DtlsIdentity> = std::sync::OnceLock::new();
    IDENTITY.get_or_init(|| server(now()).identity).clone()
}

proptest! {
    /// `PROPTEST_CASES` sets the number of handshakes.
    #[test]
    fn no_mistreated_handshake_makes_the_engine_panic(
        plans in proptest::collection::vec(proptest::collection::vec(mischief(), 24), 2),
    ) {
        use rand::SeedableRng;
        let mut now = now();
        let mut server = Dtls::new(now, identity(), ChaCha20Rng::from_seed([6; 32]));
        let mut past: Vec<Vec<u8>> = vec![vec![22]];
        for plan in plans {
            let mut client = Client::new(now, &server, ends(1));
            let mut plan = plan.into_iter();
            for round in 0..8 {
                if client.connected && round % 2 == 0 {
                    let _ = client.engine.send_application_data(b"after the handshake");
                    server.send(tuple(client.ends), b"from the server");
                }
                for packet in client.poll() {
                    let mischief = plan.next().flatten();
                    if let Some(Mischief::Wait(seconds)) = mischief {
                        now = now.after(Duration::from_secs(seconds));
                        server.handle_timeout(now);
                        let _ = client.engine.handle_timeout(now.mono);
                    }
                    past.push(packet.clone());
                    let arrives = match &mischief {
                        Some(mischief) => mistreated(mischief, packet, &past),
                        None => vec![packet],
                    };
                    for datagram in arrives.iter().filter(|datagram| !datagram.is_empty()) {
                        server.hear(now, client.ends, datagram);
                    }
                }
                while let Some(output) = server.poll_output() {
                    if let Output::Datagram { bytes, .. } | Output::Challenge { bytes, .. } = output {
                        // What the client makes of it is the client's affair.
                        let _ = client.engine.handle_packet(&bytes);
                    }
                }
            }
        }
        prop_assert_eq!(server.failed_engines.engines, 0);
        server.remove(ends(1));
        prop_assert!(server.sessions.is_empty() && server.quota.total() == 0);
        prop_assert_eq!(server.poll_timeout(), None);
    }
}
