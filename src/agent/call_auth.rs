//! Authentication of a call's offer, answer and packets.
//!
//! Each side of a call chooses a user name fragment of 128 random bits. In the place of the ICE password, the offer carries a MAC over both
//! tags and the connector's fragment, and the answer one over both tags and both fragments. The ICE passwords are derived and never sent. The
//! listener's password and the key of QUIC's Initial packets depend on both fragments. Therefore an answer or a packet of one call is
//! invalid in any other, and the server, which sees all signalling, can neither answer a connectivity check nor begin a handshake.
//! A call that resumes a session states the fragment of the session's first call. Its MACs are also over a secret that both sides export from
//! the session's QUIC connection, so that another holder of the ticket cannot take the place of either side.
//! [`ReplayCache`] detects a repeated offer.

use super::keys::{AgentRole, Secret};
use crate::signaling::wire::{IceDescription, Tag};
use ring::hmac;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use subtle::ConstantTimeEq;

/// Length in bytes of a MAC that is sent or used as a password (160 bits; RFC 8445 section 5.3 requires 128).
const MAC_LEN: usize = 20;

/// The key from which the keys of QUIC's Initial packets are derived, in place of the connection id only.
#[derive(Clone)]
pub(super) struct InitialKey(pub(super) hmac::Key);

impl std::fmt::Debug for InitialKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InitialKey(..)")
    }
}

impl InitialKey {
    /// Returns the key of a connection without signalling, as through the gateway.
    pub(super) fn without_call(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, mac(&secret.call_key(), b"initial", &[]).as_ref()))
    }
}

/// The secret of a session, exported from its QUIC connection ([RFC 8446 section 7.5](https://www.rfc-editor.org/rfc/rfc8446#section-7.5)); unset until the handshake is complete.
#[derive(Clone, Default)]
pub(super) struct SessionSecret(Arc<OnceLock<[u8; SESSION_SECRET_LEN]>>);

impl SessionSecret {
    /// The exporter's label.
    pub(super) const LABEL: &'static [u8] = b"EXPORTER-ginnel-resumption";

    pub(super) fn set(&self, secret: [u8; SESSION_SECRET_LEN]) {
        let _ = self.0.set(secret);
    }

    fn text(&self) -> Option<String> {
        self.0.get().map(|secret| data_encoding::HEXLOWER.encode(secret))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.get().is_some()
    }
}

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

/// The session that a call resumes.
struct ResumedSession {
    /// The connector's fragment of its first call.
    ufrag: String,
    secret: SessionSecret,
}

/// Derives the connector's ICE password, which is needed before the connector knows its tag.
pub(super) fn connector_password(secret: &Secret, ufrag: &str) -> String {
    text(&mac(&secret.call_key(), b"connector password", &[ufrag]))
}

/// What authenticates one call.
pub(super) struct CallAuth {
    role: AgentRole,
    key: hmac::Key,
    key_id: String,
    caller: Tag,
    callee: Tag,
    connector: String,
    /// The listener's fragment; the connector learns it from the answer.
    listener: String,
    resumed: Option<ResumedSession>,
}

/// Length of a [`SessionSecret`] in bytes.
pub(super) const SESSION_SECRET_LEN: usize = 32;
/// The option of an offer that resumes a session.
const RESUME: &str = "resume:";
/// The option of an offer that names the secret with which it is authenticated.
const KEY: &str = "key:";

impl CallAuth {
    /// Returns the connector's side of a call from `caller`, whose fragment is `ufrag`, to `callee`.
    pub(super) fn of_connector(secret: &Secret, [caller, callee]: [&Tag; 2], ufrag: &str) -> Self {
        Self {
            resumed: None,
            role: AgentRole::Connector,
            key: secret.call_key(),
            key_id: secret.key_id(),
            caller: caller.clone(),
            callee: callee.clone(),
            connector: ufrag.to_owned(),
            listener: String::new(),
        }
    }

    /// Makes the call resume the session whose first call had this connector's fragment.
    pub(super) fn resuming(self, ufrag: &str, secret: SessionSecret) -> Self {
        Self { resumed: Some(ResumedSession { ufrag: ufrag.to_owned(), secret }), ..self }
    }

    /// Returns the connector's fragment of the session that the call resumes.
    pub(super) fn resumed(&self) -> Option<&str> {
        self.resumed.as_ref().map(|session| session.ufrag.as_str())
    }

    /// Verifies the offer of `caller` to `callee`, whose fragment is `ufrag`, and puts the connector's ICE password into it. `None` if its
    /// sender does not hold the ticket, made it for other tags, or resumes a session that is not its own; `sessions` has their secrets.
    pub(super) fn of_listener(
        secret: &Secret,
        [caller, callee]: [&Tag; 2],
        offer: &mut IceDescription,
        (ufrag, sessions): (&str, impl Fn(&str) -> Option<SessionSecret>),
    ) -> Option<Self> {
        let resumed = match resumed_fragment(offer) {
            Some(ufrag) => Some(ResumedSession { ufrag: ufrag.to_owned(), secret: sessions(ufrag)? }),
            None => None,
        };
        let auth = Self {
            role: AgentRole::Listener,
            listener: ufrag.to_owned(),
            resumed,
            ..Self::of_connector(secret, [caller, callee], offer.ufrag.as_ref()?)
        };
        let is_valid = same(&auth.offer_mac(), offer.pwd.as_ref()?);
        offer.pwd = Some(text(&mac(&auth.key, b"connector password", &[&auth.connector])));
        is_valid.then_some(auth)
    }

    /// Puts the listener's ICE password into its answer; returns whether the answer belongs to this call.
    pub(super) fn verify_answer(&mut self, answer: &mut IceDescription) -> bool {
        let (Some(ufrag), Some(mac)) = (answer.ufrag.clone(), answer.pwd.take()) else { return false };
        self.listener = ufrag;
        answer.pwd = Some(self.listener_password());
        same(&self.answer_mac(), &mac)
    }

    /// Puts this side's MAC into its offer or answer, in the place of the ICE password.
    pub(super) fn sign(&self, ice: &mut IceDescription) {
        if self.role == AgentRole::Connector {
            ice.opts.push(format!("{KEY}{}", self.key_id));
            ice.opts.extend(self.resumed().map(|ufrag| format!("{RESUME}{ufrag}")));
        }
        ice.pwd = Some(match self.role {
            AgentRole::Connector => self.offer_mac(),
            AgentRole::Listener => self.answer_mac(),
        });
    }

    /// Returns the listener's ICE password.
    pub(super) fn listener_password(&self) -> String {
        text(&mac(&self.key, b"listener password", &[&self.connector, &self.listener]))
    }

    /// Returns the key of QUIC's Initial packets; the connector needs the answer first.
    pub(super) fn initial_key(&self) -> InitialKey {
        let key = mac(&self.key, b"initial", &[&self.connector, &self.listener]);
        InitialKey(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    fn offer_mac(&self) -> String {
        self.mac_of_call(b"offer", &[&self.connector])
    }

    fn answer_mac(&self) -> String {
        self.mac_of_call(b"answer", &[&self.connector, &self.listener])
    }

    fn mac_of_call(&self, label: &[u8], fragments: &[&str]) -> String {
        let session = self.resumed.as_ref();
        let secret = session.and_then(|session| session.secret.text());
        let mut parts = vec![self.caller.as_str(), self.callee.as_str()];
        parts.extend(fragments);
        parts.extend(session.map(|session| session.ufrag.as_str()));
        parts.extend(secret.as_deref());
        text(&mac(&self.key, label, &parts))
    }
}

/// Returns the fragment of the session that an offer resumes.
pub(super) fn resumed_fragment(offer: &IceDescription) -> Option<&str> {
    offer.opts.iter().find_map(|option| option.strip_prefix(RESUME))
}

/// Returns the key id of the secret with which an offer is authenticated; older connectors state none.
pub(super) fn key_id(offer: &IceDescription) -> Option<&str> {
    offer.opts.iter().find_map(|option| option.strip_prefix(KEY))
}

/// The last offers that a listener has received. Only holders of the ticket can fill it.
#[derive(Debug)]
pub(super) struct ReplayCache {
    known: HashSet<String>,
    order: VecDeque<String>,
    capacity: usize,
}

impl ReplayCache {
    /// Returns a cache of the last `capacity` offers.
    pub(super) fn new(capacity: usize) -> Self {
        Self { known: HashSet::new(), order: VecDeque::new(), capacity }
    }

    /// Inserts an offer by its sender's fragment; returns whether it is new.
    pub(super) fn insert(&mut self, ufrag: &str) -> bool {
        if !self.known.insert(ufrag.to_owned()) {
            return false;
        }
        self.order.push_back(ufrag.to_owned());
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Each part is preceded by its length, so that no two lists of parts encode to the same bytes.
fn mac(key: &hmac::Key, label: &[u8], parts: &[&str]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in std::iter::once(label).chain(parts.iter().map(|part| part.as_bytes())) {
        context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        context.update(part);
    }
    context.sign()
}

fn text(mac: &hmac::Tag) -> String {
    data_encoding::BASE32_NOPAD.encode(&mac.as_ref()[..MAC_LEN]).to_ascii_lowercase()
}

fn same(expected: &str, shown: &str) -> bool {
    expected.as_bytes().ct_eq(shown.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Tag {
        Tag::new(text).unwrap()
    }

    fn connector(secret: u8, tags: [&str; 2], ufrag: &str) -> CallAuth {
        let [caller, callee] = tags.map(tag);
        CallAuth::of_connector(&Secret([secret; 16]), [&caller, &callee], ufrag)
    }

    fn listener(tags: [&str; 2], offer: &IceDescription, ufrag: &str) -> Option<(CallAuth, IceDescription)> {
        let ([caller, callee], mut offer) = (tags.map(tag), offer.clone());
        let auth = CallAuth::of_listener(&Secret([1; 16]), [&caller, &callee], &mut offer, (ufrag, session));
        auth.map(|auth| (auth, offer))
    }

    fn secret(byte: u8) -> SessionSecret {
        let secret = SessionSecret::default();
        secret.set([byte; SESSION_SECRET_LEN]);
        secret
    }

    /// The listener has one session.
    fn session(ufrag: &str) -> Option<SessionSecret> {
        (ufrag == "first").then(|| secret(7))
    }

    fn description(auth: &CallAuth, ufrag: &str) -> IceDescription {
        let mut ice = IceDescription {
            ufrag: Some(ufrag.into()),
            pwd: Some("an ICE password".into()),
            ..IceDescription::default()
        };
        auth.sign(&mut ice);
        ice
    }

    #[test]
    fn both_sides_of_a_call_derive_the_same_and_send_no_password() {
        let mut caller = connector(1, ["c", "l"], "one");
        let offer = description(&caller, "one");
        let (callee, taken) = listener(["c", "l"], &offer, "two").unwrap();
        let passwords = [taken.pwd.unwrap(), callee.listener_password()];
        assert_eq!(passwords[0], connector_password(&Secret([1; 16]), "one"));
        let answer = description(&callee, "two");
        let mut received = answer.clone();
        assert!(caller.verify_answer(&mut received));
        assert_eq!(received.pwd.as_ref(), Some(&passwords[1]));
        for sent in [&offer.pwd, &answer.pwd] {
            assert!(passwords.iter().all(|password| Some(password) != sent.as_ref()), "{sent:?}");
        }
        let [a, b] = [caller.initial_key(), callee.initial_key()].map(|key| hmac::sign(&key.0, b"cid"));
        assert_eq!(a.as_ref(), b.as_ref());
    }

    #[test]
    fn an_offer_is_good_for_its_own_tags_and_ticket() {
        let offer = description(&connector(1, ["c", "l"], "one"), "one");
        assert!(listener(["c", "l"], &offer, "two").is_some());
        for tags in [["x", "l"], ["c", "x"], ["cl", ""], ["l", "c"]] {
            let known = tags.iter().all(|tag| Tag::new(*tag).is_some());
            assert!(!known || listener(tags, &offer, "two").is_none(), "{tags:?}");
        }
        assert!(listener(["c", "l"], &description(&connector(2, ["c", "l"], "one"), "one"), "two").is_none());
        assert!(
            listener(["c", "l"], &IceDescription { ufrag: Some("other".into()), ..offer.clone() }, "two")
                .is_none()
        );
        assert!(listener(["c", "l"], &IceDescription { pwd: None, ..offer }, "two").is_none());
    }

    #[test]
    fn an_answer_of_another_call_is_refused() {
        let (mut first, mut second) = (connector(1, ["c", "l"], "one"), connector(1, ["c", "l"], "other"));
        let (callee, _) = listener(["c", "l"], &description(&first, "one"), "two").unwrap();
        let answer = description(&callee, "two");
        assert!(!second.verify_answer(&mut answer.clone()));
        assert!(!first.verify_answer(&mut IceDescription { ufrag: Some("three".into()), ..answer.clone() }));
        assert!(first.verify_answer(&mut answer.clone()));
        let keys = [first.initial_key(), second.initial_key()].map(|key| hmac::sign(&key.0, b"cid"));
        assert_ne!(keys[0].as_ref(), keys[1].as_ref());
    }

    #[test]
    fn a_session_is_resumed_only_by_the_peer_of_its_connection() {
        let of = |ufrag, session| {
            let mut auth = connector(1, ["c", "l"], "one").resuming(ufrag, session);
            let offer = description(&auth, "one");
            let answer = listener(["c", "l"], &offer, "two").map(|(callee, _)| description(&callee, "two"));
            answer.map(|mut answer| auth.verify_answer(&mut answer))
        };
        assert_eq!(of("first", secret(7)), Some(true));
        assert_eq!(of("first", secret(8)), None, "another holder of the ticket");
        assert_eq!(of("first", SessionSecret::default()), None);
        assert_eq!(of("other", secret(7)), None, "an unknown session");
        // Nor can another holder answer in the listener's place.
        let mut auth = connector(1, ["c", "l"], "one").resuming("first", secret(7));
        let (mut callee, _) =
            listener(["c", "l"], &description(&auth, "one"), "two").expect("the offer of the peer");
        callee.resumed = Some(ResumedSession { ufrag: "first".into(), secret: secret(8) });
        assert!(!auth.verify_answer(&mut description(&callee, "two")));
        // Without the option it is the first call of a session.
        let mut offer = description(&connector(1, ["c", "l"], "one").resuming("first", secret(7)), "one");
        offer.opts.clear();
        assert!(listener(["c", "l"], &offer, "two").is_none());
    }

    #[test]
    fn ice_passwords_differ_by_role_call_and_secret() {
        let of = |secret, ufrag| connector_password(&Secret([secret; 16]), ufrag);
        let one = of(1, "abcd");
        assert!(one.len() >= 22, "RFC 8445 section 5.3 requires 128 bits");
        let offer = description(&connector(1, ["c", "l"], "abcd"), "abcd");
        let of_listener = |ufrag| listener(["c", "l"], &offer, ufrag).unwrap().0.listener_password();
        assert_ne!(of_listener("x"), of_listener("y"));
        for other in [of(2, "abcd"), of(1, "abce"), of_listener("abcd")] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_replay_cache_is_bounded() {
        let mut offers = ReplayCache::new(2);
        assert!(["a", "b"].map(|ufrag| offers.insert(ufrag)).iter().all(|new| *new));
        assert!(!offers.insert("a") && !offers.insert("b"));
        assert!(offers.insert("c") && !offers.insert("b") && !offers.insert("c"));
        assert_eq!((offers.known.len(), offers.order.len()), (2, 2));
        assert!(offers.insert("a"), "the oldest one was removed");
    }
}
