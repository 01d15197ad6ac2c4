//! Credentials that a stranger writes: NONCE, ACCESS-TOKEN and MOBILITY-TICKET, in requests whose integrity may even be right. None
//! that the server has not made is believed, and none that it has made after any change.

use ginnel::Now;
use ginnel::internals::net::time;
use ginnel::internals::turn_server::auth::{
    AuthError, Authenticator, AuthenticatorConfig, RealmCredentials, TokenKey, UserKeys,
};
use ginnel::internals::turn_server::{FiveTuple, Transport};
use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const REALM: &str = "r";
/// A token that an authorization server has made, and the key inside it; as `coturn`'s `turnutils_oauth` writes them.
const KID: &str = "north";

/// The first byte chooses what the rest is taken for.
pub(crate) fn run(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let world = World::new();
    match choice % 4 {
        0 => world.forged_nonce(rest),
        1 => world.changed_nonce(rest),
        2 => world.forged_token(rest),
        _ => world.whole_request(rest),
    }
}

struct World {
    authority: Authenticator,
    now: Now,
    client: FiveTuple,
}

impl World {
    fn new() -> Self {
        let users = [("alice".to_owned(), UserKeys::of_password("alice", REALM, "pw"))].into();
        let realm = RealmCredentials { name: REALM.to_owned(), users, ..RealmCredentials::default() };
        let token = TokenKey::new(KID, "turn.example.org", &[7; 32]).unwrap();
        let setup = AuthenticatorConfig {
            realms: vec![realm],
            tokens: vec![token],
            ..AuthenticatorConfig::default()
        };
        let server = SocketAddr::from((Ipv4Addr::new(198, 41, 0, 4), 3478));
        let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 1000));
        Self {
            authority: Authenticator::with(setup, &[5; 32]),
            now: Now { unix: 1_800_000_000, ..time::now() },
            client: FiveTuple { client, server, transport: Transport::Udp },
        }
    }

    /// A request of alice's with this nonce, its integrity right.
    fn signed(&self, nonce: &[u8]) -> Vec<u8> {
        Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]))
            .attribute(attr::USERNAME, b"alice")
            .attribute(attr::REALM, REALM.as_bytes())
            .attribute(attr::NONCE, nonce)
            .integrity(&Key::from_bytes(&long_term_digest("alice", REALM, "pw")))
            .finish()
    }

    fn refusal(&self, now: Now, client: FiveTuple, bytes: &[u8]) -> Option<AuthError> {
        let message = Message::parse(bytes).ok()?;
        self.authority.check(now, &client, None, &message).err()
    }

    fn forged_nonce(&self, nonce: &[u8]) {
        let nonce = &nonce[..nonce.len().min(763)];
        let genuine = self.authority.challenge(self.now, &self.client).nonce;
        if nonce != genuine.as_bytes() {
            let refusal = self.refusal(self.now, self.client, &self.signed(nonce));
            assert_eq!(refusal, Some(AuthError::StaleNonce));
        }
    }

    /// Changes one byte of a good nonce, shortens or lengthens it, or takes it elsewhere or to another time.
    fn changed_nonce(&self, how: &[u8]) {
        let [kind, at, by, ..] = *how else { return };
        let genuine = self.authority.challenge(self.now, &self.client).nonce.into_bytes();
        assert_eq!(self.refusal(self.now, self.client, &self.signed(&genuine)), None, "a good nonce");
        let (mut nonce, mut now, mut client) = (genuine.clone(), self.now, self.client);
        match kind % 5 {
            0 => {
                let at = usize::from(at) % nonce.len();
                nonce[at] ^= by;
            }
            1 => nonce.truncate(usize::from(at) % nonce.len()),
            2 => nonce.insert(usize::from(at) % nonce.len(), by),
            3 => client.client.set_port(1001 + u16::from(at)),
            _ => now = now.after(Duration::from_secs(86_400 + u64::from(at))),
        }
        if (&nonce, now, client) != (&genuine, self.now, self.client) {
            assert_eq!(self.refusal(now, client, &self.signed(&nonce)), Some(AuthError::StaleNonce));
        }
    }

    /// A token that was not issued has no known key.
    fn forged_token(&self, token: &[u8]) {
        let token = &token[..token.len().min(2000)];
        let nonce = self.authority.challenge(self.now, &self.client).nonce;
        for key in [&[0; 32][..], &[1; 20], b""] {
            let bytes = Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]))
                .attribute(attr::USERNAME, KID.as_bytes())
                .attribute(attr::REALM, REALM.as_bytes())
                .attribute(attr::NONCE, nonce.as_bytes())
                .attribute(attr::ACCESS_TOKEN, token)
                .integrity(&Key::from_bytes(key))
                .finish();
            assert_eq!(self.refusal(self.now, self.client, &bytes), Some(AuthError::Unauthorized));
        }
    }

    /// Attributes as the input has them, type, length and value, signed with alice's key and with a good nonce in front.
    fn whole_request(&self, mut rest: &[u8]) {
        let nonce = self.authority.challenge(self.now, &self.client).nonce;
        let key = Key::from_bytes(&long_term_digest("alice", REALM, "pw"));
        let mut builder = Builder::new(Class::Request, Method::REFRESH, TransactionId::new([2; 12]));
        for _ in 0..16 {
            let [kind, length, tail @ ..] = rest else { break };
            let (value, tail) = tail.split_at(usize::from(*length).min(tail.len()));
            let kinds = [
                attr::USERNAME,
                attr::REALM,
                attr::NONCE,
                attr::USERHASH,
                attr::PASSWORD_ALGORITHM,
                attr::PASSWORD_ALGORITHMS,
                attr::ACCESS_TOKEN,
                attr::MOBILITY_TICKET,
            ];
            let kind = kinds[usize::from(*kind) % kinds.len()];
            // An empty value stands for the right one.
            builder = match (kind, value) {
                (attr::USERNAME, []) => builder.attribute(kind, b"alice"),
                (attr::REALM, []) => builder.attribute(kind, REALM.as_bytes()),
                (attr::NONCE, []) => builder.attribute(kind, nonce.as_bytes()),
                _ => builder.attribute(kind, value),
            };
            rest = tail;
        }
        let bytes = builder.clone().integrity(&key).finish();
        let message = Message::parse(&bytes).expect("what is built can be read");
        if let Ok(authenticated) = self.authority.check(self.now, &self.client, None, &message) {
            assert_eq!(&*authenticated.user, "alice");
            assert_eq!(message.nonce(), Some(&*nonce));
        }
        // The same without the key: never.
        let wrong = builder.integrity(&Key::from_bytes(&[0; 16])).finish();
        assert!(self.refusal(self.now, self.client, &wrong).is_some());
    }
}
