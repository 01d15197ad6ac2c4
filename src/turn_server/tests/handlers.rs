//! Handlers that an embedder implements.

use super::*;
use crate::turn_server::auth::{AuthenticatorConfig, RealmCredentials, UserKeys};
use crate::turn_server::handlers::{AuthHandler, EventHandler, PermissionHandler, QuotaHandler};
use std::sync::Mutex;

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn record(&self, event: String) {
        self.0.lock().unwrap().push(event);
    }
}

impl AuthHandler for Recorder {
    fn user_keys(&self, user: &str, realm: &str, _: &FiveTuple) -> Option<UserKeys> {
        self.record(format!("keys {user} {realm}"));
        (user == "carol").then(|| UserKeys::of_password(user, realm, "pw"))
    }
}

impl PermissionHandler for Recorder {
    fn permits(&self, _: &FiveTuple, _: &str, peer: SocketAddr) -> bool {
        peer.ip() != addr("8.8.4.4:1").ip()
    }
}

impl QuotaHandler for Recorder {
    fn admits(&self, client: &FiveTuple, user: &str) -> bool {
        (user, client.client.port()) != ("bob", 2)
    }
}

impl EventHandler for Recorder {
    fn on_unauthorized(&self, client: &FiveTuple) {
        self.record(format!("unauthorized {}", client.client.port()));
    }

    fn on_allocation_created(&self, _: &FiveTuple, user: &str, relayed: &[SocketAddr]) {
        self.record(format!("created {user} {}", relayed[0].ip()));
    }

    fn on_allocation_ended(&self, _: &FiveTuple, user: &str, reason: &str) {
        self.record(format!("ended {user} {reason}"));
    }

    fn on_permission(&self, _: &FiveTuple, _: &str, peer: IpAddr) {
        self.record(format!("permission {peer}"));
    }

    fn on_channel(&self, _: &FiveTuple, _: &str, number: u16, peer: SocketAddr) {
        self.record(format!("channel {number:#x} {peer}"));
    }
}

fn server(recorder: &Arc<Recorder>) -> TestRelay {
    let mut shared = shared(10, 50_000..=50_009);
    shared.permission_handler = Some(Arc::<Recorder>::clone(recorder));
    shared.quota_handler = Some(Arc::<Recorder>::clone(recorder));
    shared.event_handler = Some(Arc::<Recorder>::clone(recorder));
    TestRelay::with(shared)
}

#[test]
fn a_permission_handler_refuses_peers_that_the_policy_allows() {
    let mut server = server(&Arc::default());
    server.allocate(1);
    assert_eq!((server.create_permission(1, PEER), server.create_permission(1, "8.8.4.4:0")), (0, 403));
    assert_eq!(server.bind_channel(1, 0x4000, "8.8.4.4:9"), 403);
    assert_eq!(server.relay.denials().collect::<Vec<_>>(), [("permission handler", 2)]);
}

#[test]
fn a_quota_handler_refuses_allocations_within_the_quota() {
    let mut server = server(&Arc::default());
    assert_eq!(server.request(2, "bob", Method::ALLOCATE, udp).0, 486);
    assert_eq!(server.shared.quota.held(), 0);
    assert_eq!(server.request(3, "bob", Method::ALLOCATE, udp).0, 0);
}

#[test]
fn an_event_handler_receives_the_events_of_the_relay() {
    let recorder = Arc::<Recorder>::default();
    let mut server = server(&recorder);
    let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([9; 12]))).finish();
    server.send(tuple(7), &bytes);
    server.allocate(1);
    assert_eq!((server.create_permission(1, PEER), server.bind_channel(1, 0x4001, PEER)), (0, 0));
    server.refresh(1, "alice", 0);
    let events = recorder.0.lock().unwrap();
    let expected = [
        "unauthorized 7",
        "created alice 198.41.0.4",
        "permission 8.8.8.8",
        "permission 8.8.8.8",
        "channel 0x4001 8.8.8.8:5000",
        "ended alice refreshed to zero",
    ];
    assert_eq!(*events, expected);
}

#[test]
fn an_auth_handler_supplies_keys_of_users_that_the_configuration_does_not_have() {
    let recorder = Arc::<Recorder>::default();
    let users = HashMap::from([("alice".to_owned(), UserKeys::of_password("alice", "r", "pw"))]);
    let realms = vec![RealmCredentials { name: "r".to_owned(), users, ..RealmCredentials::default() }];
    let handler: Arc<dyn AuthHandler> = Arc::<Recorder>::clone(&recorder);
    let config = AuthenticatorConfig { realms, handler: Some(handler), ..AuthenticatorConfig::default() };
    let mut shared = shared(10, 50_000..=50_009);
    shared.authenticator = Arc::new(Authenticator::with(config, &[5; 32]));
    let mut server = TestRelay::with(shared);
    assert_eq!(server.request(1, "alice", Method::ALLOCATE, udp).0, 0);
    assert_eq!(*recorder.0.lock().unwrap(), Vec::<String>::new(), "the configuration has its keys");
    assert_eq!(server.request(2, "carol", Method::ALLOCATE, udp).0, 0);
    assert_eq!(server.request(3, "mallory", Method::ALLOCATE, udp).0, 401);
    assert_eq!(*recorder.0.lock().unwrap(), ["keys carol r", "keys mallory r"]);
}
