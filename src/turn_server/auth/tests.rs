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

/// A request in the making; what is `None` is left out.
#[derive(Clone)]
struct Ask<'a> {
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

impl<'a> Ask<'a> {
    /// A request as a browser makes it.
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
fn right_credentials_pass_and_each_wrong_part_has_its_refusal() {
    let (start, authority) = (now(), authority());
    let right = Ask::new(&authority, start, "alice", "pw");
    let (owner, integrity) = right.check(&authority, start).unwrap();
    assert_eq!((&*owner.user, integrity), ("alice", Integrity::Sha1));
    let refusal = |ask: Ask<'_>| ask.refusal(&authority, start);
    for unauthorized in [
        Ask::new(&authority, start, "alice", "no"),
        Ask::new(&authority, start, "bob", "pw"),
        Ask { realm: Some("other"), ..right.clone() },
        Ask { keys: vec![], ..right.clone() },
        Ask { user: None, realm: None, nonce: None, keys: vec![], ..right.clone() },
        Ask { user: None, hash: Some([7; 32]), ..right.clone() },
    ] {
        assert_eq!(refusal(unauthorized), Some(AuthError::Unauthorized));
    }
    for malformed in [
        Ask { user: None, ..right.clone() },
        Ask { realm: None, ..right.clone() },
        Ask { nonce: None, ..right.clone() },
    ] {
        assert_eq!(refusal(malformed), Some(AuthError::Malformed));
    }
    assert_eq!(refusal(Ask { nonce: Some("garbage".into()), ..right }), Some(AuthError::StaleNonce));
}

#[test]
fn a_nonce_serves_one_address_for_an_hour() {
    let (start, authority) = (now(), authority());
    let ask = Ask::new(&authority, start, "alice", "pw");
    assert!(ask.passes(&authority, start.after(Duration::from_secs(3600))));
    let late = start.after(Duration::from_secs(3601));
    assert_eq!(ask.refusal(&authority, late), Some(AuthError::StaleNonce));
    let bytes = ask.bytes();
    let message = Message::parse(&bytes).unwrap();
    for client in ["192.0.2.5:4001", "192.0.2.6:4000"] {
        let elsewhere = authority.check(start, &from(client, HERE), None, &message).err();
        assert_eq!(elsewhere, Some(AuthError::StaleNonce));
    }
}

#[test]
fn a_data_connection_may_use_its_control_connections_nonce() {
    let (start, authority) = (now(), authority());
    let over = |transport, client| FiveTuple { transport, ..from(client, HERE) };
    let nonce = |client| Some(authority.challenge(start, &client).nonce);
    let refusal = |client: FiveTuple, ask: &Ask<'_>| {
        let bytes = ask.bytes();
        authority.check(start, &client, None, &Message::parse(&bytes).unwrap()).err()
    };
    let control = over(Transport::Tcp, CLIENT);
    let ask = Ask { nonce: nonce(control), ..Ask::new(&authority, start, "alice", "pw") };
    assert_eq!(refusal(control, &ask), None);
    let bind = Ask { method: Method::CONNECTION_BIND, ..ask.clone() };
    let data = over(Transport::Tcp, "192.0.2.5:4001");
    assert_eq!(refusal(data, &bind), None);
    let stale = Some(AuthError::StaleNonce);
    assert_eq!(refusal(data, &ask), stale, "other requests keep to their connection");
    for client in [over(Transport::Tcp, "192.0.2.6:4000"), over(Transport::Udp, CLIENT)] {
        assert_eq!(refusal(client, &bind), stale, "{client:?}");
        let bind = Ask { nonce: nonce(client), ..bind.clone() };
        assert_eq!(refusal(data, &bind), stale, "{client:?}");
        assert_eq!(refusal(client, &bind), None, "{client:?}");
    }
}

#[test]
fn a_nonce_of_a_node_with_the_same_key_is_good_and_keys_rotate_without_a_gap() {
    let (start, here, there) = (now(), authority(), authority());
    let just_before = Now { unix: (start.unix / 86_400 + 1) * 86_400 - 1, ..start };
    let ask = Ask::new(&there, just_before, "alice", "pw");
    assert!(ask.passes(&here, just_before.after(Duration::from_secs(2))), "made with the last day's key");
    let ahead = Ask::new(&there, start.after(Duration::from_secs(30)), "alice", "pw");
    assert!(ahead.passes(&here, start), "a node whose clock is ahead");
    let stranger = Authenticator::with(setup(), &[4; 32]);
    assert_eq!(ask.refusal(&stranger, just_before), Some(AuthError::StaleNonce));
}

#[test]
fn a_nonce_says_which_features_there_are_and_is_short() {
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
fn sha_256_is_negotiated_and_answered_with_itself() {
    let (start, authority) = (now(), authority());
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).algorithms, BOTH);
    let ask = Ask::sha256(&authority, start, "alice", "pw");
    assert_eq!(ask.check(&authority, start).unwrap().1, Integrity::Sha256);
    let md5 = Key::new(Integrity::Sha256, &long_term_digest("alice", "r", "pw"));
    let md5 = Ask { algorithm: Some(&[0, 1, 0, 0]), keys: vec![md5], ..ask.clone() };
    assert_eq!(md5.check(&authority, start).unwrap().1, Integrity::Sha256);
    let sha1 = Key::new(Integrity::Sha1, &long_term_digest_sha256("alice", "r", "pw"));
    let sha1 = Ask { keys: vec![sha1], ..ask.clone() };
    assert_eq!(sha1.refusal(&authority, start), Some(AuthError::Unauthorized), "SHA-256 only from then on");
    let wrong = Ask { user: Some("bob"), ..ask };
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn of_two_integrity_attributes_the_stronger_counts() {
    let (start, authority) = (now(), authority());
    let browser = Ask::new(&authority, start, "alice", "pw");
    let digest = long_term_digest("alice", "r", "pw");
    let right = |integrity| Key::new(integrity, &digest);
    let wrong = |integrity| Key::new(integrity, b"wrong");
    let with = |keys: [Key; 2]| Ask { keys: keys.to_vec(), ..browser.clone() }.check(&authority, start);
    let both = with([right(Integrity::Sha1), right(Integrity::Sha256)]);
    assert_eq!(both.unwrap().1, Integrity::Sha1, "processed as though the algorithm were MD5");
    assert!(with([wrong(Integrity::Sha1), right(Integrity::Sha256)]).is_ok());
    assert!(with([right(Integrity::Sha1), wrong(Integrity::Sha256)]).is_err());
}

#[test]
fn a_user_is_found_by_his_hash_but_one_with_an_expiry_in_his_name_is_not() {
    let (start, authority) = (now(), authority());
    let hashed = |ask: Ask<'static>, user| Ask { user: None, hash: Some(userhash(user, "r")), ..ask };
    let ask = hashed(Ask::sha256(&authority, start, "alice", "pw"), "alice");
    assert_eq!(&*ask.check(&authority, start).unwrap().0.user, "alice");
    let other_realm = Ask { hash: Some(userhash("alice", "other")), ..ask };
    assert_eq!(other_realm.refusal(&authority, start), Some(AuthError::Unauthorized));
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let mut ask = Ask::new(&authority, start, "alice", "pw");
    ask.user = None;
    ask.hash = Some(userhash(&issued.username, "r"));
    ask.keys = vec![Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential))];
    assert_eq!(ask.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn bidding_down_is_noticed() {
    let (start, authority) = (now(), authority());
    let ask = Ask::sha256(&authority, start, "alice", "pw");
    let md5_key = vec![Key::new(Integrity::Sha256, &long_term_digest("alice", "r", "pw"))];
    let md5 = Ask { algorithm: Some(&[0, 1, 0, 0]), keys: md5_key, ..ask.clone() };
    for malformed in [
        Ask { algorithms: None, ..ask.clone() },
        Ask { algorithm: None, ..ask.clone() },
        Ask { algorithms: Some(&[0, 1, 0, 0]), ..md5.clone() },
        Ask { algorithms: Some(&[0, 1, 0, 0, 0, 2, 0, 0]), ..md5.clone() },
        Ask { algorithms: None, ..md5 },
        Ask { algorithm: Some(&[0, 3, 0, 0]), ..ask.clone() },
        Ask { algorithm: Some(&[0, 2]), ..ask.clone() },
    ] {
        assert_eq!(malformed.refusal(&authority, start), Some(AuthError::Malformed));
    }
    let nonce = ask.nonce.clone().unwrap();
    for altered in ["AAAA", "QAAA", "wAAA", "gAAB", "====", "gAA"] {
        let nonce = Some(nonce.replacen("gAAA", altered, 1));
        assert_eq!(Ask { nonce, ..ask.clone() }.refusal(&authority, start), Some(AuthError::StaleNonce));
    }
    let bare = Some(nonce["obMatJos2gAAA".len()..].to_owned());
    assert_eq!(Ask { nonce: bare, ..ask }.refusal(&authority, start), Some(AuthError::StaleNonce));
}

#[test]
fn a_user_without_a_sha_256_key_takes_that_algorithm_from_the_offer() {
    let start = now();
    let authority = authority();
    let md5_only = UserKeys { sha256: None, ..UserKeys::of_password("bob", "r", "pw") };
    let ask = Ask::sha256(&authority, start, "alice", "pw");
    authority.replace_file_users(&[("bob".to_owned(), "r".to_owned(), md5_only)]);
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).algorithms, MD5);
    assert_eq!(ask.refusal(&authority, start), Some(AuthError::StaleNonce), "the offer it answers is gone");
    assert!(Ask::new(&authority, start, "bob", "pw").passes(&authority, start));
}

#[test]
fn minted_credentials_work_until_they_expire() {
    let (start, authority) = (now(), authority());
    for hash in [RestHash::Sha1, RestHash::Sha256] {
        let issued = RestSecret::new(b"north").issue_with(hash, "tag", start.unix + 60);
        for (later, good) in [(0, true), (59, true), (60, false)] {
            let at = start.after(Duration::from_secs(later));
            let browser = Ask::new(&authority, at, &issued.username, &issued.credential);
            let modern = Ask::sha256(&authority, at, &issued.username, &issued.credential);
            for ask in [browser, modern] {
                let owner = ask.check(&authority, at).map(|(owner, _)| owner.expires_unix);
                assert_eq!(owner.ok(), good.then_some(Some(start.unix + 60)), "{hash:?} after {later} s");
            }
        }
    }
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let later = format!("{}:tag", start.unix + 999);
    let forged = Ask::new(&authority, start, &later, &issued.credential);
    assert_eq!(forged.refusal(&authority, start), Some(AuthError::Unauthorized));
}

#[test]
fn every_form_of_a_time_limited_name_is_taken_and_counts_until_its_end() {
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
            let ask = Ask::new(&authority, start, &name, &secret.password(RestHash::Sha1, &name));
            assert_eq!(ask.passes(&authority, start), passes, "{name}");
        }
    }
    let ask = Ask::new(&authority, start, "carol", &secret.password(RestHash::Sha1, "carol"));
    assert!(!ask.passes(&authority, start), "without an end");
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
    let asks = |name: &str, method| {
        let issued = RestSecret::new(b"north").issue(name, start.unix + 60);
        let ask = Ask::new(&authority, start, &issued.username, &issued.credential);
        let owner =
            AllocationOwner { user: issued.username.as_str().into(), expires_unix: None, mac_key: None };
        Ask { method, ..ask }.check_as(&authority, start, Some(&owner)).map(|_| ())
    };
    authority.revoked.revoke(start.unix, "tag", start.unix + 60).unwrap();
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CHANNEL_BIND] {
        assert_eq!(asks("tag", method), Err(AuthError::Unauthorized));
        assert_eq!(asks("tags", method), Ok(()));
    }
    assert_eq!(asks("alice", Method::ALLOCATE), Ok(()));
    authority.revoked.restore("tag");
    assert_eq!(asks("tag", Method::ALLOCATE), Ok(()));
}

#[test]
fn a_secret_that_was_replaced_still_verifies_as_long_as_it_is_listed() {
    let (start, authority) = (now(), authority());
    for (secret, good) in [("north", true), ("of the old times", true), ("forgotten", false)] {
        let issued = RestSecret::new(secret.as_bytes()).issue("tag", start.unix + 60);
        let ask = Ask::new(&authority, start, &issued.username, &issued.credential);
        assert_eq!(ask.passes(&authority, start), good, "{secret}");
    }
}

#[test]
fn credentials_that_are_over_keep_an_allocation_only_where_that_is_configured() {
    let start = now();
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    let late = start.after(Duration::from_secs(61));
    for (expiry, kept) in [(Expiry::AtAllocate, true), (Expiry::AtRefresh, false), (Expiry::Hard, false)] {
        let authority = Authenticator::with(AuthenticatorConfig { expiry, ..setup() }, &[3; 32]);
        let first = Ask::new(&authority, start, &issued.username, &issued.credential);
        let (owner, _) = first.check(&authority, start).unwrap();
        let again = Ask::new(&authority, late, &issued.username, &issued.credential);
        let refresh = Ask { method: Method::REFRESH, ..again.clone() };
        assert_eq!(refresh.check_as(&authority, late, Some(&owner)).is_ok(), kept, "{expiry:?}");
        assert!(again.check_as(&authority, late, Some(&owner)).is_err(), "no new allocation");
        assert!(refresh.check_as(&authority, late, None).is_err(), "no allocation to keep");
        let other = AllocationOwner { user: "other".into(), ..owner.clone() };
        assert!(refresh.check_as(&authority, late, Some(&other)).is_err(), "another's allocation");
        for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND, Method::CONNECT] {
            let ask = Ask { method, ..again.clone() };
            assert_eq!(ask.check_as(&authority, late, Some(&owner)).is_ok(), kept, "{expiry:?}");
        }
        let bind = Ask { method: Method::CONNECTION_BIND, ..again.clone() };
        assert_eq!(bind.check_as(&authority, late, None).is_ok(), kept, "by a connection of its own");
        let moves = Ask { ticket: Some(b"sealed"), ..refresh };
        assert_eq!(moves.check_as(&authority, late, None).is_ok(), kept, "from another address");
    }
    assert_eq!(AuthenticatorConfig::default().expiry, Expiry::AtAllocate);
}

#[test]
fn in_hard_mode_the_end_of_the_credentials_caps_the_lifetime() {
    let start = now();
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    for (expiry, cap) in [(Expiry::Hard, Some(Duration::from_secs(60))), (Expiry::AtRefresh, None)] {
        let authority = Authenticator::with(AuthenticatorConfig { expiry, ..setup() }, &[3; 32]);
        let bytes = Ask::new(&authority, start, &issued.username, &issued.credential).bytes();
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
        let ask = Ask { realm: Some(realm), keys, ..Ask::new(&authority, start, user, password) };
        assert_eq!(ask.passes(&authority, start), good, "{user} in {realm}");
    }
    authority.replace_file_users(&[(
        "carol".into(),
        "other".into(),
        UserKeys::of_password("carol", "other", "pw"),
    )]);
    let keys = vec![Key::from_bytes(&long_term_digest("carol", "other", "pw"))];
    let ask = Ask { realm: Some("other"), keys, ..Ask::new(&authority, start, "carol", "pw") };
    assert!(ask.passes(&authority, start));
    assert!(!Ask { realm: Some("r"), ..ask }.passes(&authority, start));
}

#[test]
fn the_users_of_a_file_come_after_the_static_ones_and_go_with_it() {
    let (start, authority) = (now(), authority());
    let of_file =
        |user: &str, password| (user.to_owned(), "r".to_owned(), UserKeys::of_password(user, "r", password));
    authority.replace_file_users(&[of_file("alice", "from the file"), of_file("bob", "pw")]);
    let passes = |user, password| Ask::new(&authority, start, user, password).passes(&authority, start);
    assert!(passes("alice", "pw") && passes("bob", "pw") && !passes("alice", "from the file"));
    authority.replace_file_users(&[]);
    let passes = |user, password| Ask::new(&authority, start, user, password).passes(&authority, start);
    assert!(passes("alice", "pw") && !passes("bob", "pw"));
}

#[test]
fn whom_nobody_here_knows_is_asked_for_once_and_then_known_for_a_while() {
    let start = now();
    let minute = Duration::from_secs(60);
    let lookup = Some(LookupCacheConfig { known: minute, unknown: Duration::from_secs(10), entries: 100 });
    let authority = Authenticator::with(AuthenticatorConfig { lookup, ..setup() }, &[3; 32]);
    let ask = Ask::new(&authority, start, "dora", "pw");
    let Some(AuthError::Lookup(question)) = ask.refusal(&authority, start) else { panic!("asked nobody") };
    assert_eq!((question.user.as_str(), question.realm.as_str()), ("dora", "r"));
    let verdict =
        |expires_unix| LookupResult::Known { keys: UserKeys::of_password("dora", "r", "pw"), expires_unix };
    authority.store_lookup(start, Arc::clone(&question), verdict(Some(start.unix + 30)));
    assert_eq!(ask.check(&authority, start).unwrap().0.expires_unix, Some(start.unix + 30));
    let wrong = Ask::new(&authority, start, "dora", "no");
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
    let over = start.after(Duration::from_secs(31));
    assert_eq!(ask.refusal(&authority, over), Some(AuthError::Unauthorized));
    assert!(matches!(ask.refusal(&authority, start.after(minute)), Some(AuthError::Lookup(_))));
    authority.store_lookup(start, question, LookupResult::Unknown);
    assert_eq!(ask.refusal(&authority, start), Some(AuthError::Unauthorized));
    assert!(matches!(ask.refusal(&authority, start.after(minute)), Some(AuthError::Lookup(_))));
    let modern = Ask::sha256(&authority, start, "eve", "pw");
    let Some(AuthError::Lookup(question)) = modern.refusal(&authority, start) else { panic!("asked nobody") };
    authority.store_lookup(
        start,
        question,
        LookupResult::Known { keys: UserKeys::of_password("eve", "r", "pw"), expires_unix: None },
    );
    assert!(modern.passes(&authority, start));
}

#[test]
fn somebody_elses_word_never_replaces_a_user_of_ours() {
    let start = now();
    let limit = Duration::from_secs(60);
    let lookup = Some(LookupCacheConfig { known: limit, unknown: limit, entries: 100 });
    let authority = Authenticator::with(AuthenticatorConfig { lookup, ..setup() }, &[3; 32]);
    let wrong = Ask::new(&authority, start, "alice", "of the hook");
    let Some(AuthError::Lookup(question)) = wrong.refusal(&authority, start) else {
        panic!("a known user is told from an unknown one by the time that asking takes")
    };
    let keys = UserKeys::of_password("alice", "r", "of the hook");
    authority.store_lookup(start, question, LookupResult::Known { keys, expires_unix: None });
    assert_eq!(wrong.refusal(&authority, start), Some(AuthError::Unauthorized));
    assert!(Ask::new(&authority, start, "alice", "pw").passes(&authority, start));
}

fn with_tokens() -> (Authenticator, TokenKey) {
    let key = || TokenKey::new("north", "turn.example.org", &[7; 32]).unwrap();
    (Authenticator::with(AuthenticatorConfig { tokens: vec![key()], ..setup() }, &[3; 32]), key())
}

#[test]
fn a_token_opens_an_allocation_and_its_key_serves_the_requests_that_follow() {
    let start = now();
    let (authority, key) = with_tokens();
    assert_eq!(authority.challenge(start, &from(CLIENT, HERE)).third_party, Some("turn.example.org"));
    for integrity in [Integrity::Sha1, Integrity::Sha256] {
        let token = key.seal(&[1; 20], start.unix, 300);
        let keys = vec![Key::new(integrity, &[1; 20])];
        let ask = Ask { token: Some(&token), keys, ..Ask::new(&authority, start, "north", "") };
        let bytes = ask.bytes();
        let message = Message::parse(&bytes).unwrap();
        let authenticated = authority.check(start, &from(CLIENT, HERE), None, &message).unwrap();
        assert_eq!(authenticated.lifetime_cap, Some(Duration::from_secs(305)));
        assert_eq!(authenticated.key.integrity(), integrity);
        let owner = authenticated.owner();
        let permit = Ask { token: None, method: Method::CREATE_PERMISSION, ..ask.clone() };
        assert!(permit.check_as(&authority, start, Some(&owner)).is_ok());
        assert!(permit.check_as(&authority, start, None).is_err(), "without an allocation there is no key");
        let over = start.after(Duration::from_secs(305));
        assert_eq!(permit.check_as(&authority, over, Some(&owner)).err(), Some(AuthError::Unauthorized));
    }
}

#[test]
fn a_token_that_is_over_garbled_or_stolen_is_refused() {
    let start = now();
    let (authority, key) = with_tokens();
    let refusal = |token: &[u8], mac_key: &[u8], user| {
        let keys = vec![Key::from_bytes(mac_key)];
        let ask = Ask { token: Some(token), keys, ..Ask::new(&authority, start, user, "") };
        ask.refusal(&authority, start)
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

/// Returns the median nanoseconds of a check of each request, measured by turns so that all share whatever else the machine does.
fn medians(authority: &Authenticator, at: Now, asks: &[Ask<'_>]) -> Vec<u128> {
    let requests: Vec<_> = asks.iter().map(Ask::bytes).collect();
    let mut times = vec![Vec::new(); asks.len()];
    for _ in 0..2000 {
        for (bytes, times) in requests.iter().zip(&mut times) {
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
fn the_time_of_a_refusal_does_not_tell_what_was_wrong() {
    let (start, authority) = (now(), authority());
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 60);
    for make in [Ask::new, Ask::sha256] {
        let right = make(&authority, start, "alice", "pw");
        let asks = [
            make(&authority, start, "alice", "no"),
            make(&authority, start, "nobod", "pw"),
            Ask { realm: Some("x"), ..right },
            make(&authority, start, &issued.username, "no"),
        ];
        let medians = medians(&authority, start, &asks);
        let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
        assert!(
            *most < least * 3 / 2,
            "wrong password, unknown user, wrong realm, wrong REST: {medians:?} ns"
        );
    }
}
