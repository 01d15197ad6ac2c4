use super::*;
use crate::net::time::now;
use crate::stun::{Builder, Class, TransactionId, long_term_digest, long_term_digest_sha256, userhash};
use crate::turn_server::Transport;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

const CLIENT: &str = "192.0.2.5:4000";
const HERE: &str = "198.51.100.1";
const BOTH_OFFERED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

fn from(client: &str, server: &str) -> FiveTuple {
    let server = SocketAddr::new(server.parse().unwrap(), 3478);
    FiveTuple { client: client.parse().unwrap(), server, transport: Transport::Udp }
}

fn realm(name: &str, users: &[(&str, &str)]) -> RealmCredentials {
    let keys =
        |(user, password): &(&str, &str)| ((*user).to_owned(), UserKeys::of_password(user, name, password));
    RealmCredentials {
        name: name.to_owned(),
        users: users.iter().map(keys).collect(),
        ..RealmCredentials::default()
    }
}

fn setup() -> AuthenticatorConfig {
    let mut realm = realm("r", &[("alice", "pw")]);
    realm.rest = vec![RestSecret::new(b"north"), RestSecret::new(b"of the old times")];
    AuthenticatorConfig { realms: vec![realm], ..AuthenticatorConfig::default() }
}

fn authority() -> Authenticator {
    Authenticator::with(setup(), &[3; 32])
}

/// A request to build; attributes that are `None` are omitted.
#[derive(Clone)]
struct TestRequest<'a> {
    method: Method,
    user: Option<&'a str>,
    hash: Option<[u8; 32]>,
    realm: Option<&'a str>,
    nonce: Option<String>,
    algorithms: Option<&'a [u8]>,
    algorithm: Option<&'a [u8]>,
    token: Option<&'a [u8]>,
    ticket: Option<&'a [u8]>,
    keys: Vec<Key>,
}

impl<'a> TestRequest<'a> {
    /// A request as a browser sends it.
    fn new(authority: &Authenticator, at: Now, user: &'a str, password: &str) -> Self {
        let challenge = authority.challenge(at, &from(CLIENT, HERE));
        Self {
            method: Method::ALLOCATE,
            user: Some(user),
            hash: None,
            realm: Some("r"),
            nonce: Some(challenge.nonce),
            algorithms: None,
            algorithm: None,
            token: None,
            ticket: None,
            keys: vec![Key::from_bytes(&long_term_digest(user, "r", password))],
        }
    }

    /// The same as a client of RFC 8489 makes it.
    fn sha256(authority: &Authenticator, at: Now, user: &'a str, password: &str) -> Self {
        let keys = vec![Key::new(Integrity::Sha256, &long_term_digest_sha256(user, "r", password))];
        let (algorithms, algorithm) = (Some(&BOTH_OFFERED[..]), Some(&BOTH_OFFERED[..4]));
        Self { algorithms, algorithm, keys, ..Self::new(authority, at, user, password) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut builder = Builder::new(Class::Request, self.method, TransactionId::new([1; 12]));
        for (kind, value) in [
            (attr::USERNAME, self.user.map(str::as_bytes)),
            (attr::USERHASH, self.hash.as_ref().map(<[u8; 32]>::as_slice)),
            (attr::REALM, self.realm.map(str::as_bytes)),
            (attr::NONCE, self.nonce.as_deref().map(str::as_bytes)),
            (attr::PASSWORD_ALGORITHMS, self.algorithms),
            (attr::PASSWORD_ALGORITHM, self.algorithm),
            (attr::ACCESS_TOKEN, self.token),
            (attr::MOBILITY_TICKET, self.ticket),
        ] {
            builder = match value {
                Some(value) => builder.attribute(kind, value),
                None => builder,
            };
        }
        self.keys.iter().fold(builder, Builder::integrity).finish()
    }

    fn check(&self, authority: &Authenticator, at: Now) -> Result<(AllocationOwner, Integrity), AuthError> {
        self.check_as(authority, at, None)
    }

    fn check_as(
        &self,
        authority: &Authenticator,
        at: Now,
        owner: Option<&AllocationOwner>,
    ) -> Result<(AllocationOwner, Integrity), AuthError> {
        let bytes = self.bytes();
        let message = Message::parse(&bytes).unwrap();
        let ok = authority.check(at, &from(CLIENT, HERE), owner, &message)?;
        Ok((ok.owner(), ok.key.integrity()))
    }

    fn passes(&self, authority: &Authenticator, at: Now) -> bool {
        self.check(authority, at).is_ok()
    }

    fn refusal(&self, authority: &Authenticator, at: Now) -> Option<AuthError> {
        self.check(authority, at).err()
    }
}

#[test]
fn correct_credentials_pass_and_each_wrong_part_gets_its_error() {
    let (start, authority) = (now(), authority());
    let right = TestRequest::new(&authority, start, "alice", "pw");
    let (owner, integrity) = right.check(&authority, start).unwrap();
    assert_eq!((&*owner.user, integrity), ("alice", Integrity::Sha1));
    let refusal = |request: TestRequest<'_>| request.refusal(&authority, start);
    for unauthorized in [
        TestRequest::new(&authority, start, "alice", "no"),
        TestRequest::new(&authority, start, "bob", "pw"),
        TestRequest { realm: Some("other"), ..right.clone() },
        TestRequest { keys: vec![], ..right.clone() },
        TestRequest { user: None, realm: None, nonce: None, keys: vec![], ..right.clone() },
        TestRequest { user: None, hash: Some([7; 32]), ..right.clone() },
    ] {
        assert_eq!(refusal(unauthorized), Some(AuthError::Unauthorized));
    }
    for malformed in [
        TestRequest { user: None, ..right.clone() },
        TestRequest { realm: None, ..right.clone() },
        TestRequest { nonce: None, ..right.clone() },
    ] {
        assert_eq!(refusal(malformed), Some(AuthError::Malformed));
    }
    assert_eq!(refusal(TestRequest { nonce: Some("garbage".into()), ..right }), Some(AuthError::StaleNonce));
}

#[test]
fn a_nonce_is_valid_for_one_address_for_an_hour() {
    let (start, authority) = (now(), authority());
    let request = TestRequest::new(&authority, start, "alice", "pw");
    assert!(request.passes(&authority, start.after(Duration::from_secs(3600))));
    let late = start.after(Duration::from_secs(3601));
    assert_eq!(request.refusal(&authority, late), Some(AuthError::StaleNonce));
    let bytes = request.bytes();
    let message = Message::parse(&bytes).unwrap();
    for client in ["192.0.2.5:4001", "192.0.2.6:4000"] {
        let other_address = authority.check(start, &from(client, HERE), None, &message).err();
        assert_eq!(other_address, Some(AuthError::StaleNonce));
    }
}

#[test]
fn a_data_connection_may_use_its_control_connections_nonce() {
    let (start, authority) = (now(), authority());
    let over = |transport, client| FiveTuple { transport, ..from(client, HERE) };
    let nonce = |client| Some(authority.challenge(start, &client).nonce);
    let refusal = |client: FiveTuple, request: &TestRequest<'_>| {
        let bytes = request.bytes();
        authority.check(start, &client, None, &Message::parse(&bytes).unwrap()).err()
    };
    let control = over(Transport::Tcp, CLIENT);
    let request = TestRequest { nonce: nonce(control), ..TestRequest::new(&authority, start, "alice", "pw") };
    assert_eq!(refusal(control, &request), None);
    let bind = TestRequest { method: Method::CONNECTION_BIND, ..request.clone() };
    let data = over(Transport::Tcp, "192.0.2.5:4001");
    assert_eq!(refusal(data, &bind), None);
    let stale = Some(AuthError::StaleNonce);
    assert_eq!(refusal(data, &request), stale, "other requests keep to their connection");
    for client in [over(Transport::Tcp, "192.0.2.6:4000"), over(Transport::Udp, CLIENT)] {
        assert_eq!(refusal(client, &bind), stale, "{client:?}");
        let bind = TestRequest { nonce: nonce(client), ..bind.clone() };
        assert_eq!(refusal(data, &bind), stale, "{client:?}");
        assert_eq!(refusal(client, &bind), None, "{client:?}");
    }
}

#[test]
fn nodes_with_the_same_key_accept_each_others_nonces_also_while_it_rotates() {
    let (start, here, there) = (now(), authority(), authority());
    let just_before = Now { unix: (start.unix / 86_400 + 1) * 86_400 - 1, ..start };
    let request = TestRequest::new(&there, just_before, "alice", "pw");
    assert!(request.passes(&here, just_before.after(Duration::from_secs(2))), "made with the last day's key");
    let ahead = TestRequest::new(&there, start.after(Duration::from_secs(30)), "alice", "pw");
    assert!(ahead.passes(&here, start), "a node whose clock is ahead");
    let other_key = Authenticator::with(setup(), &[4; 32]);
    assert_eq!(request.refusal(&other_key, just_before), Some(AuthError::StaleNonce));
}

#[test]
fn a_nonce_contains_the_security_features_and_is_short() {
    let start = now();
    let nonce = |anonymity| {
        let authority = Authenticator::with(AuthenticatorConfig { anonymity, ..setup() }, &[3; 32]);
        authority.challenge(start, &from(CLIENT, HERE)).nonce
    };
    assert!(nonce(Some(false)).starts_with("obMatJos2gAAA"), "password algorithms");
    assert!(nonce(Some(true)).starts_with("obMatJos2wAAA"), "and anonymous user names");
    assert!(nonce(None).starts_with("obMatJos2gAAA"), "REST users cannot be found by a hash");
    assert_eq!(nonce(None).len(), 32);
    let only_users = AuthenticatorConfig {
        realms: vec![realm("r", &[("alice", "pw")])],
        ..AuthenticatorConfig::default()
    };
    let challenge = Authenticator::with(only_users, &[3; 32]).challenge(start, &from(CLIENT, HERE)).nonce;
    assert!(challenge.starts_with("obMatJos2wAAA"));
}

#[test]
fn a_request_with_sha_256_gets_a_response_with_sha_256() {
    let (start, authority) = (now(), authority());
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).algorithms, BOTH);
    let request = TestRequest::sha256(&authority, start, "alice", "pw");
    assert_eq!(request.check(&authority, start).unwrap().1, Integrity::Sha256);
    let md5 = Key::new(Integrity::Sha256, &long_term_digest("alice", "r", "pw"));
    let md5 = TestRequest { algorithm: Some(&[0, 1, 0, 0]), keys: vec![md5], ..request.clone() };
    assert_eq!(md5.check(&authority, start).unwrap().1, Integrity::Sha256);
    let sha1 = Key::new(Integrity::Sha1, &long_term_digest_sha256("alice", "r", "pw"));
    let sha1 = TestRequest { keys: vec![sha1], ..request.clone() };
    assert_eq!(sha1.refusal(&authority, start), Some(AuthError::Unauthorized), "SHA-256 only from then on");
    let wrong = TestRequest { user: Some("bob"), ..request };
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn of_two_integrity_attributes_the_stronger_is_checked() {
    let (start, authority) = (now(), authority());
    let browser = TestRequest::new(&authority, start, "alice", "pw");
    let digest = long_term_digest("alice", "r", "pw");
    let right = |integrity| Key::new(integrity, &digest);
    let wrong = |integrity| Key::new(integrity, b"wrong");
    let with =
        |keys: [Key; 2]| TestRequest { keys: keys.to_vec(), ..browser.clone() }.check(&authority, start);
    let both = with([right(Integrity::Sha1), right(Integrity::Sha256)]);
    assert_eq!(both.unwrap().1, Integrity::Sha1, "processed as though the algorithm were MD5");
    assert!(with([wrong(Integrity::Sha1), right(Integrity::Sha256)]).is_ok());
    assert!(with([right(Integrity::Sha1), wrong(Integrity::Sha256)]).is_err());
}

#[test]
fn a_user_is_found_by_userhash_but_a_time_limited_one_is_not() {
    let (start, authority) = (now(), authority());
    let hashed = |request: TestRequest<'static>, user| TestRequest {
        user: None,
        hash: Some(userhash(user, "r")),
        ..request
    };
    let request = hashed(TestRequest::sha256(&authority, start, "alice", "pw"), "alice");
    assert_eq!(&*request.check(&authority, start).unwrap().0.user, "alice");
    let other_realm = TestRequest { hash: Some(userhash("alice", "other")), ..request };
    assert_eq!(other_realm.refusal(&authority, start), Some(AuthError::Unauthorized));
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let mut request = TestRequest::new(&authority, start, "alice", "pw");
    request.user = None;
    request.hash = Some(userhash(&issued.username, "r"));
    request.keys = vec![Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential))];
    assert_eq!(request.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn a_bid_down_attack_is_detected() {
    let (start, authority) = (now(), authority());
    let request = TestRequest::sha256(&authority, start, "alice", "pw");
    let md5_key = vec![Key::new(Integrity::Sha256, &long_term_digest("alice", "r", "pw"))];
    let md5 = TestRequest { algorithm: Some(&[0, 1, 0, 0]), keys: md5_key, ..request.clone() };
    for malformed in [
        TestRequest { algorithms: None, ..request.clone() },
        TestRequest { algorithm: None, ..request.clone() },
        TestRequest { algorithms: Some(&[0, 1, 0, 0]), ..md5.clone() },
        TestRequest { algorithms: Some(&[0, 1, 0, 0, 0, 2, 0, 0]), ..md5.clone() },
        TestRequest { algorithms: None, ..md5 },
        TestRequest { algorithm: Some(&[0, 3, 0, 0]), ..request.clone() },
        TestRequest { algorithm: Some(&[0, 2]), ..request.clone() },
    ] {
        assert_eq!(malformed.refusal(&authority, start), Some(AuthError::Malformed));
    }
    let nonce = request.nonce.clone().unwrap();
    for altered in ["AAAA", "QAAA", "wAAA", "gAAB", "====", "gAA"] {
        let nonce = Some(nonce.replacen("gAAA", altered, 1));
        assert_eq!(
            TestRequest { nonce, ..request.clone() }.refusal(&authority, start),
            Some(AuthError::StaleNonce)
        );
    }
    let bare = Some(nonce["obMatJos2gAAA".len()..].to_owned());
    assert_eq!(
        TestRequest { nonce: bare, ..request }.refusal(&authority, start),
        Some(AuthError::StaleNonce)
    );
}

#[test]
fn sha_256_is_not_offered_if_a_user_has_no_sha_256_key() {
    let start = now();
    let authority = authority();
    let md5_only = UserKeys { sha256: None, ..UserKeys::of_password("bob", "r", "pw") };
    let request = TestRequest::sha256(&authority, start, "alice", "pw");
    authority.replace_file_users(&[("bob".to_owned(), "r".to_owned(), md5_only)]);
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).algorithms, MD5);
    assert_eq!(
        request.refusal(&authority, start),
        Some(AuthError::StaleNonce),
        "its algorithms are no longer offered"
    );
    assert!(TestRequest::new(&authority, start, "bob", "pw").passes(&authority, start));
}

#[test]
fn issued_credentials_are_valid_until_they_expire() {
    let (start, authority) = (now(), authority());
    for hash in [RestHash::Sha1, RestHash::Sha256] {
        let issued = RestSecret::new(b"north").issue_with(hash, "tag", start.unix + 60);
        for (later, good) in [(0, true), (59, true), (60, false)] {
            let at = start.after(Duration::from_secs(later));
            let browser = TestRequest::new(&authority, at, &issued.username, &issued.credential);
            let modern = TestRequest::sha256(&authority, at, &issued.username, &issued.credential);
            for request in [browser, modern] {
                let owner = request.check(&authority, at).map(|(owner, _)| owner.expires_unix);
                assert_eq!(owner.ok(), good.then_some(Some(start.unix + 60)), "{hash:?} after {later} s");
            }
        }
    }
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let later = format!("{}:tag", start.unix + 999);
    let forged = TestRequest::new(&authority, start, &later, &issued.credential);
    assert_eq!(forged.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn every_form_of_a_time_limited_name_is_accepted_until_it_expires() {
    let (start, authority) = (now(), authority());
    let secret = RestSecret::new(b"north");
    let (good, over) = (start.unix + 60, start.unix - 60);
    let forms: [fn(u64) -> String; 8] = [
        |at| at.to_string(),
        |at| format!("{at}:"),
        |at| format!("{at}:alice"),
        |at| format!("{at}:@alice:example.org"),
        |at| format!("{at}:alice@example.org"),
        |at| format!("alice:{at}"),
        |at| format!("@alice:example.org:{at}"),
        |at| format!("{at}:{}", "x".repeat(400)),
    ];
    for form in forms {
        for (at, passes) in [(good, true), (good * 1000, true), (over, false)] {
            let name = form(at);
            let request = TestRequest::new(&authority, start, &name, &secret.password(RestHash::Sha1, &name));
            assert_eq!(request.passes(&authority, start), passes, "{name}");
        }
    }
    let request = TestRequest::new(&authority, start, "carol", &secret.password(RestHash::Sha1, "carol"));
    assert!(!request.passes(&authority, start), "without an end");
}

#[test]
fn credentials_of_a_revoked_name_are_refused_like_a_wrong_password() {
    for expiry in [Expiry::AtAllocate, Expiry::AtRefresh, Expiry::Hard] {
        assert_revoked_are_refused(expiry);
    }
}

fn assert_revoked_are_refused(expiry: Expiry) {
    let start = now();
    let authority = Authenticator::with(AuthenticatorConfig { expiry, ..setup() }, &[3; 32]);
    let requests = |name: &str, method| {
        let issued = RestSecret::new(b"north").issue(name, start.unix + 60);
        let request = TestRequest::new(&authority, start, &issued.username, &issued.credential);
        let owner =
            AllocationOwner { user: issued.username.as_str().into(), expires_unix: None, mac_key: None };
        TestRequest { method, ..request }.check_as(&authority, start, Some(&owner)).map(|_| ())
    };
    authority.revoked.revoke(start.unix, "tag", start.unix + 60).unwrap();
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CHANNEL_BIND] {
        assert_eq!(requests("tag", method), Err(AuthError::Unauthorized));
        assert_eq!(requests("tags", method), Ok(()));
    }
    assert_eq!(requests("alice", Method::ALLOCATE), Ok(()));
    authority.revoked.restore("tag");
    assert_eq!(requests("tag", Method::ALLOCATE), Ok(()));
}

#[test]
fn a_replaced_secret_is_accepted_while_it_is_configured() {
    let (start, authority) = (now(), authority());
    for (secret, good) in [("north", true), ("of the old times", true), ("forgotten", false)] {
        let issued = RestSecret::new(secret.as_bytes()).issue("tag", start.unix + 60);
        let request = TestRequest::new(&authority, start, &issued.username, &issued.credential);
        assert_eq!(request.passes(&authority, start), good, "{secret}");
    }
}

#[test]
fn expired_credentials_refresh_an_allocation_only_if_so_configured() {
    let start = now();
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let late = start.after(Duration::from_secs(61));
    for (expiry, kept) in [(Expiry::AtAllocate, true), (Expiry::AtRefresh, false), (Expiry::Hard, false)] {
        let authority = Authenticator::with(AuthenticatorConfig { expiry, ..setup() }, &[3; 32]);
        let first = TestRequest::new(&authority, start, &issued.username, &issued.credential);
        let (owner, _) = first.check(&authority, start).unwrap();
        let again = TestRequest::new(&authority, late, &issued.username, &issued.credential);
        let refresh = TestRequest { method: Method::REFRESH, ..again.clone() };
        assert_eq!(refresh.check_as(&authority, late, Some(&owner)).is_ok(), kept, "{expiry:?}");
        assert!(again.check_as(&authority, late, Some(&owner)).is_err(), "no new allocation");
        assert!(refresh.check_as(&authority, late, None).is_err(), "no allocation to keep");
        let other = AllocationOwner { user: "other".into(), ..owner.clone() };
        assert!(refresh.check_as(&authority, late, Some(&other)).is_err(), "another's allocation");
        for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND, Method::CONNECT] {
            let request = TestRequest { method, ..again.clone() };
            assert_eq!(request.check_as(&authority, late, Some(&owner)).is_ok(), kept, "{expiry:?}");
        }
        let bind = TestRequest { method: Method::CONNECTION_BIND, ..again.clone() };
        assert_eq!(bind.check_as(&authority, late, None).is_ok(), kept, "by a connection of its own");
        let moves = TestRequest { ticket: Some(b"sealed"), ..refresh };
        assert_eq!(moves.check_as(&authority, late, None).is_ok(), kept, "from another address");
    }
    assert_eq!(AuthenticatorConfig::default().expiry, Expiry::AtAllocate);
}

#[test]
fn in_hard_mode_the_expiry_of_the_credentials_limits_the_lifetime() {
    let start = now();
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    for (expiry, cap) in [(Expiry::Hard, Some(Duration::from_secs(60))), (Expiry::AtRefresh, None)] {
        let authority = Authenticator::with(AuthenticatorConfig { expiry, ..setup() }, &[3; 32]);
        let bytes = TestRequest::new(&authority, start, &issued.username, &issued.credential).bytes();
        let message = Message::parse(&bytes).unwrap();
        let authenticated = authority.check(start, &from(CLIENT, HERE), None, &message).unwrap();
        assert_eq!(authenticated.lifetime_cap, cap);
    }
}

#[test]
fn each_realm_has_its_own_users_secrets_and_addresses() {
    let start = now();
    let other = RealmCredentials {
        addresses: vec!["198.51.100.2".parse::<IpAddr>().unwrap()],
        rest: vec![RestSecret::new(b"south")],
        ..realm("other", &[("bob", "pw")])
    };
    let mut setup = setup();
    setup.realms.push(other);
    let authority = Authenticator::with(setup, &[3; 32]);
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).realm, "r");
    assert_eq!(authority.challenge(start, &from(CLIENT, "198.51.100.2")).realm, "other");
    let south = RestSecret::new(b"south").issue("tag", start.unix + 60);
    for (user, password, realm, good) in [
        ("alice", "pw", "r", true),
        ("alice", "pw", "other", false),
        ("bob", "pw", "other", true),
        ("bob", "pw", "r", false),
        (&south.username, &south.credential, "other", true),
        (&south.username, &south.credential, "r", false),
    ] {
        let keys = vec![Key::from_bytes(&long_term_digest(user, realm, password))];
        let request =
            TestRequest { realm: Some(realm), keys, ..TestRequest::new(&authority, start, user, password) };
        assert_eq!(request.passes(&authority, start), good, "{user} in {realm}");
    }
    authority.replace_file_users(&[(
        "carol".into(),
        "other".into(),
        UserKeys::of_password("carol", "other", "pw"),
    )]);
    let keys = vec![Key::from_bytes(&long_term_digest("carol", "other", "pw"))];
    let request =
        TestRequest { realm: Some("other"), keys, ..TestRequest::new(&authority, start, "carol", "pw") };
    assert!(request.passes(&authority, start));
    assert!(!TestRequest { realm: Some("r"), ..request }.passes(&authority, start));
}

#[test]
fn the_users_of_the_credentials_file_follow_the_configured_ones_and_are_removed_with_it() {
    let (start, authority) = (now(), authority());
    let of_file =
        |user: &str, password| (user.to_owned(), "r".to_owned(), UserKeys::of_password(user, "r", password));
    authority.replace_file_users(&[of_file("alice", "from the file"), of_file("bob", "pw")]);
    let passes =
        |user, password| TestRequest::new(&authority, start, user, password).passes(&authority, start);
    assert!(passes("alice", "pw") && passes("bob", "pw") && !passes("alice", "from the file"));
    authority.replace_file_users(&[]);
    let passes =
        |user, password| TestRequest::new(&authority, start, user, password).passes(&authority, start);
    assert!(passes("alice", "pw") && !passes("bob", "pw"));
}

#[test]
fn an_unknown_user_is_looked_up_once_and_the_result_is_cached() {
    let start = now();
    let minute = Duration::from_secs(60);
    let lookup = Some(LookupCacheConfig { known: minute, unknown: Duration::from_secs(10), entries: 100 });
    let authority = Authenticator::with(AuthenticatorConfig { lookup, ..setup() }, &[3; 32]);
    let request = TestRequest::new(&authority, start, "dora", "pw");
    let Some(AuthError::Lookup(question)) = request.refusal(&authority, start) else {
        panic!("no look-up was started")
    };
    assert_eq!((question.user.as_str(), question.realm.as_str()), ("dora", "r"));
    let verdict =
        |expires_unix| LookupResult::Known { keys: UserKeys::of_password("dora", "r", "pw"), expires_unix };
    authority.store_lookup(start, Arc::clone(&question), verdict(Some(start.unix + 30)));
    assert_eq!(request.check(&authority, start).unwrap().0.expires_unix, Some(start.unix + 30));
    let wrong = TestRequest::new(&authority, start, "dora", "no");
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
    let over = start.after(Duration::from_secs(31));
    assert_eq!(request.refusal(&authority, over), Some(AuthError::Unauthorized));
    assert!(matches!(request.refusal(&authority, start.after(minute)), Some(AuthError::Lookup(_))));
    authority.store_lookup(start, question, LookupResult::Unknown);
    assert_eq!(request.refusal(&authority, start), Some(AuthError::Unauthorized));
    assert!(matches!(request.refusal(&authority, start.after(minute)), Some(AuthError::Lookup(_))));
    let modern = TestRequest::sha256(&authority, start, "eve", "pw");
    let Some(AuthError::Lookup(question)) = modern.refusal(&authority, start) else {
        panic!("no look-up was started")
    };
    authority.store_lookup(
        start,
        question,
        LookupResult::Known { keys: UserKeys::of_password("eve", "r", "pw"), expires_unix: None },
    );
    assert!(modern.passes(&authority, start));
}

#[test]
fn a_look_up_never_replaces_a_configured_user() {
    let start = now();
    let limit = Duration::from_secs(60);
    let lookup = Some(LookupCacheConfig { known: limit, unknown: limit, entries: 100 });
    let authority = Authenticator::with(AuthenticatorConfig { lookup, ..setup() }, &[3; 32]);
    let wrong = TestRequest::new(&authority, start, "alice", "of the hook");
    let Some(AuthError::Lookup(question)) = wrong.refusal(&authority, start) else {
        panic!("the response time of a configured user differs from that of an unknown one")
    };
    let keys = UserKeys::of_password("alice", "r", "of the hook");
    authority.store_lookup(start, question, LookupResult::Known { keys, expires_unix: None });
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
    assert!(TestRequest::new(&authority, start, "alice", "pw").passes(&authority, start));
}

fn with_tokens() -> (Authenticator, TokenKey) {
    let key = || TokenKey::new("north", "turn.example.org", &[7; 32]).unwrap();
    (Authenticator::with(AuthenticatorConfig { tokens: vec![key()], ..setup() }, &[3; 32]), key())
}

#[test]
fn a_token_authorizes_an_allocation_and_its_key_verifies_later_requests() {
    let start = now();
    let (authority, key) = with_tokens();
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).third_party, Some("turn.example.org"));
    for integrity in [Integrity::Sha1, Integrity::Sha256] {
        let token = key.seal(&[1; 20], start.unix, 300);
        let keys = vec![Key::new(integrity, &[1; 20])];
        let request =
            TestRequest { token: Some(&token), keys, ..TestRequest::new(&authority, start, "north", "") };
        let bytes = request.bytes();
        let message = Message::parse(&bytes).unwrap();
        let authenticated = authority.check(start, &from(CLIENT, HERE), None, &message).unwrap();
        assert_eq!(authenticated.lifetime_cap, Some(Duration::from_secs(305)));
        assert_eq!(authenticated.key.integrity(), integrity);
        let owner = authenticated.owner();
        let permit = TestRequest { token: None, method: Method::CREATE_PERMISSION, ..request.clone() };
        assert!(permit.check_as(&authority, start, Some(&owner)).is_ok());
        assert!(permit.check_as(&authority, start, None).is_err(), "without an allocation there is no key");
        let over = start.after(Duration::from_secs(305));
        assert_eq!(permit.check_as(&authority, over, Some(&owner)).err(), Some(AuthError::Unauthorized));
    }
}

#[test]
fn an_expired_malformed_or_stolen_token_is_refused() {
    let start = now();
    let (authority, key) = with_tokens();
    let refusal = |token: &[u8], mac_key: &[u8], user| {
        let keys = vec![Key::from_bytes(mac_key)];
        let request =
            TestRequest { token: Some(token), keys, ..TestRequest::new(&authority, start, user, "") };
        request.refusal(&authority, start)
    };
    let good = key.seal(&[1; 20], start.unix, 60);
    assert_eq!(refusal(&good, &[1; 20], "north"), None);
    let mut garbled = good.clone();
    garbled[20] ^= 1;
    for (token, mac_key, user) in [
        (&good, [2; 20], "north"),
        (&good, [1; 20], "south"),
        (&garbled, [1; 20], "north"),
        (&key.seal(&[1; 20], start.unix - 65, 60), [1; 20], "north"),
        (&key.seal(&[1; 20], start.unix + 65, 60), [1; 20], "north"),
        (&vec![], [1; 20], "north"),
    ] {
        assert_eq!(refusal(token, &mac_key, user), Some(AuthError::Unauthorized));
    }
}

/// Returns the median nanoseconds of a check of each request, measured alternately, so that other load of the machine affects all of them.
fn medians(authority: &Authenticator, at: Now, requests: &[TestRequest<'_>]) -> Vec<u128> {
    let encoded: Vec<_> = requests.iter().map(TestRequest::bytes).collect();
    let mut times = vec![Vec::new(); requests.len()];
    for _ in 0..2000 {
        for (bytes, times) in encoded.iter().zip(&mut times) {
            let message = Message::parse(bytes).unwrap();
            #[expect(clippy::disallowed_methods, reason = "the test measures time")]
            let begin = Instant::now();
            let refused = authority.check(at, &from(CLIENT, HERE), None, &message).err();
            times.push(begin.elapsed().as_nanos());
            assert_eq!(refused, Some(AuthError::Unauthorized));
        }
    }
    let median = |mut times: Vec<u128>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

#[test]
fn the_response_time_does_not_reveal_which_credential_was_wrong() {
    let (start, authority) = (now(), authority());
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    for make in [TestRequest::new, TestRequest::sha256] {
        let right = make(&authority, start, "alice", "pw");
        let requests = [
            make(&authority, start, "alice", "no"),
            make(&authority, start, "nobod", "pw"),
            TestRequest { realm: Some("x"), ..right },
            make(&authority, start, &issued.username, "no"),
        ];
        let medians = medians(&authority, start, &requests);
        let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
        assert!(
            *most < least * 3 / 2,
            "wrong password, unknown user, wrong realm, wrong REST: {medians:?} ns"
        );
    }
}
