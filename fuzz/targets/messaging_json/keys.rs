//! The keys of the accounts and their devices, and what they sign.

use data_encoding::BASE64URL_NOPAD;
use ginnel::internals::store::NewAccountDevice;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;

pub(super) const USERS: [&str; 3] = ["u0", "u1", "u2"];
/// Devices of each user that have keys.
pub(super) const DEVICES: usize = 2;

const MOST_SIGNATURES: usize = 10_000;

/// By the key and what it has signed.
type Signatures = HashMap<([u8; 32], Vec<u8>), [u8; 64]>;

thread_local! {
    static SIGNATURES: RefCell<Signatures> = RefCell::default();
}

pub(super) struct SigningKey(Ed25519KeyPair);

static IDENTITIES: LazyLock<[SigningKey; USERS.len()]> =
    LazyLock::new(|| [0, 1, 2].map(|user| SigningKey::new(10 * user)));
static SIGNING: LazyLock<[[SigningKey; DEVICES]; USERS.len()]> =
    LazyLock::new(|| [0, 1, 2].map(|user| [1, 2].map(|device| SigningKey::new(10 * user + device))));
static NEW: LazyLock<[[NewAccountDevice; DEVICES]; USERS.len()]> = LazyLock::new(|| {
    [0, 1, 2].map(|user| {
        [0, 1].map(|device| {
            let (signing_key, encryption_key) =
                (signing(user, device).public(), encryption_key(user, device));
            let fields = [USERS[user].as_bytes(), &signing_key, &encryption_key];
            NewAccountDevice {
                account: USERS[user].to_owned(),
                label: "device".to_owned(),
                signing_key,
                encryption_key,
                signature: identity(user).sign("ginnel device key v1", &fields),
                created_at_ms: 0,
            }
        })
    })
});

pub(super) fn identity(user: usize) -> &'static SigningKey {
    &IDENTITIES[user]
}

pub(super) fn signing(user: usize, device: usize) -> &'static SigningKey {
    &SIGNING[user][device]
}

pub(super) fn new_device(user: usize, device: usize) -> NewAccountDevice {
    NEW[user][device].clone()
}

/// The machine only stores it.
fn encryption_key(user: usize, device: usize) -> [u8; 32] {
    std::array::from_fn(|index| (17 * user + 5 * device + 7 * index + 9) as u8 & 0x7F)
}

impl SigningKey {
    fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed + 1; 32]).expect("a seed"))
    }

    pub(super) fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("32 bytes")
    }

    /// Signs a statement. Connections have the same challenges in every input, and signatures would take most of the time of an input.
    pub(super) fn sign(&self, domain: &str, fields: &[&[u8]]) -> [u8; 64] {
        let mut bytes = [domain.as_bytes(), &[0]].concat();
        for field in fields {
            bytes.extend((field.len() as u32).to_be_bytes());
            bytes.extend(*field);
        }
        SIGNATURES.with_borrow_mut(|signatures| {
            let key = (self.public(), bytes);
            if let Some(signature) = signatures.get(&key) {
                return *signature;
            }
            let signature = self.0.sign(&key.1).as_ref().try_into().expect("64 bytes");
            if signatures.len() < MOST_SIGNATURES {
                signatures.insert(key, signature);
            }
            signature
        })
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}
