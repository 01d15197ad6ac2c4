//! The keys of an account and its devices. Pure: randomness is passed in.
//!
//! An account has an Ed25519 identity key, which signs the keys of its devices. A device has an Ed25519 key, with which it logs in and signs
//! messages, and an X25519 key, to which messages are encrypted.

use super::encryption;
use crate::messaging_wire::signing::{SigningKey, Statement};
use crate::messaging_wire::{FixedBytes, NewDevice};
use data_encoding::BASE64URL_NOPAD;
use rand::CryptoRng;
use ring::digest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a linking code begins with.
const CODE_PREFIX: &str = "ginnel-device:";
/// Longest name of a device, in bytes.
const MAX_LABEL: usize = 128;

/// The fingerprint of an identity key: the first half of its SHA-256, as 8 groups of 4 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 16]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 8 groups of 4 hexadecimal digits")]
pub struct FingerprintError;

impl Fingerprint {
    pub(super) fn of(identity_key: &[u8; 32]) -> Self {
        let digest = digest::digest(&digest::SHA256, identity_key);
        let mut half = [0; 16];
        half.copy_from_slice(&digest.as_ref()[..16]);
        Self(half)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, [high, low]) in self.0.as_chunks::<2>().0.iter().enumerate() {
            let space = if n == 0 { "" } else { " " };
            write!(f, "{space}{high:02x}{low:02x}")?;
        }
        Ok(())
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Spaces are ignored.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(FingerprintError)
    }
}

/// The secrets of one device, and of the account if this device made it; in the form of the key file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Secrets {
    /// The seed of the identity key; absent on a linked device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity_seed: Option<FixedBytes<32>>,
    pub(super) signing_seed: FixedBytes<32>,
    pub(super) encryption_secret: FixedBytes<32>,
}

impl Secrets {
    /// Makes the keys of a new device, and an identity key for a new account.
    pub(super) fn generate(with_identity: bool, random: &mut impl CryptoRng) -> Self {
        let mut secret = || {
            let mut bytes = [0; 32];
            random.fill_bytes(&mut bytes);
            FixedBytes(bytes)
        };
        Self {
            identity_seed: with_identity.then(&mut secret),
            signing_seed: secret(),
            encryption_secret: secret(),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// The keys of one device, ready for use.
#[derive(Debug)]
pub(super) struct Keys {
    /// Absent on a linked device.
    pub(super) identity: Option<SigningKey>,
    pub(super) signing: SigningKey,
    encryption_secret: FixedSecret,
    /// The public half of the encryption key.
    pub(super) encryption_key: [u8; 32],
}

struct FixedSecret([u8; 32]);

impl fmt::Debug for FixedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedSecret(..)")
    }
}

impl Keys {
    /// Returns the keys; `None` does not happen, every seed gives a key.
    pub(super) fn new(secrets: &Secrets) -> Option<Self> {
        let identity = match &secrets.identity_seed {
            Some(seed) => Some(SigningKey::from_seed(&seed.0)?),
            None => None,
        };
        Some(Self {
            identity,
            signing: SigningKey::from_seed(&secrets.signing_seed.0)?,
            encryption_secret: FixedSecret(secrets.encryption_secret.0),
            encryption_key: encryption::public_key(&secrets.encryption_secret.0),
        })
    }

    pub(super) fn encryption_secret(&self) -> &[u8; 32] {
        &self.encryption_secret.0
    }

    /// Returns the code with which the account adds this device.
    pub(super) fn device_code(&self, label: &str) -> DeviceCode {
        let end = (0..=label.len().min(MAX_LABEL)).rev().find(|end| label.is_char_boundary(*end));
        let label = label[..end.unwrap_or(0)].to_owned();
        DeviceCode { signing_key: self.signing.public(), encryption_key: self.encryption_key, label }
    }
}

/// The public keys of a device that an account is to add: `ginnel-device:` and base64url of both keys and the device's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceCode {
    pub(super) signing_key: [u8; 32],
    pub(super) encryption_key: [u8; 32],
    pub(super) label: String,
}

/// A text that is no code of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a valid code of a device")]
pub(crate) struct DeviceCodeError;

impl DeviceCode {
    /// Returns the name that the device gave itself.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Signs the keys of the device as one of the account's.
    pub(super) fn certify(self, user: &str, identity: &SigningKey) -> NewDevice {
        let statement =
            Statement::Device { user, signing_key: &self.signing_key, encryption_key: &self.encryption_key };
        let signature = FixedBytes(identity.sign(&statement));
        NewDevice {
            label: self.label,
            signing_key: FixedBytes(self.signing_key),
            encryption_key: FixedBytes(self.encryption_key),
            signature,
        }
    }
}

impl fmt::Display for DeviceCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.signing_key[..], &self.encryption_key, self.label.as_bytes()].concat();
        write!(f, "{CODE_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for DeviceCode {
    type Err = DeviceCodeError;

    fn from_str(text: &str) -> Result<Self, DeviceCodeError> {
        let code = text.trim().strip_prefix(CODE_PREFIX).ok_or(DeviceCodeError)?;
        let bytes = BASE64URL_NOPAD.decode(code.as_bytes()).map_err(|_| DeviceCodeError)?;
        let (signing_key, rest) = bytes.split_first_chunk::<32>().ok_or(DeviceCodeError)?;
        let (encryption_key, label) = rest.split_first_chunk::<32>().ok_or(DeviceCodeError)?;
        let label = str::from_utf8(label).map_err(|_| DeviceCodeError)?;
        let is_valid = label.len() <= MAX_LABEL && !label.chars().any(char::is_control);
        match is_valid {
            true => Ok(Self {
                signing_key: *signing_key,
                encryption_key: *encryption_key,
                label: label.to_owned(),
            }),
            false => Err(DeviceCodeError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use serde_json::Value;

    fn vector() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/message_encryption.json")).unwrap()
    }

    #[test]
    fn a_fingerprint_is_half_of_the_keys_digest_in_groups() {
        let vector = vector();
        let key: FixedBytes<32> = serde_json::from_value(vector["identity_key"].clone()).unwrap();
        let fingerprint = Fingerprint::of(&key.0);
        let text = fingerprint.to_string();
        assert_eq!(text.replace(' ', ""), vector["fingerprint"].as_str().unwrap());
        assert_eq!((text.len(), text.split(' ').count()), (39, 8));
        assert_eq!(text.to_uppercase().parse(), Ok(fingerprint));
        assert_eq!(text[1..].parse::<Fingerprint>(), Err(FingerprintError));
    }

    #[test]
    fn a_certificate_is_that_of_another_implementation() {
        let vector = vector();
        let bytes = |name: &str| -> [u8; 32] {
            data_encoding::HEXLOWER
                .decode(vector[name].as_str().unwrap().as_bytes())
                .unwrap()
                .try_into()
                .unwrap()
        };
        let secrets = Secrets {
            identity_seed: Some(FixedBytes(bytes("identity_seed"))),
            signing_seed: FixedBytes(bytes("device_signing_seed")),
            encryption_secret: FixedBytes(bytes("device_encryption_secret")),
        };
        let keys = Keys::new(&secrets).unwrap();
        let device = keys.device_code("pc").certify("alice", keys.identity.as_ref().unwrap());
        let json = serde_json::to_value(&device).unwrap();
        assert_eq!(json["signature"], vector["certificate"]);
        assert_eq!(json["encryption_key"], vector["device_encryption_key"]);
        assert_eq!(json["signing_key"], vector["device_signing_key"]);
    }

    #[test]
    fn a_code_of_a_device_is_read_back_and_a_damaged_one_is_refused() {
        let secrets = Secrets::generate(false, &mut ChaCha20Rng::seed_from_u64(1));
        let code = Keys::new(&secrets).unwrap().device_code("Annes Büro");
        assert_eq!(format!(" {code}\n").parse(), Ok(code.clone()));
        let text = code.to_string();
        for bad in ["", "ginnel-device:", &text[1..], &text[..60], &format!("{text}=")] {
            assert_eq!(bad.parse::<DeviceCode>(), Err(DeviceCodeError), "{bad}");
        }
        let control = DeviceCode { label: "\u{1b}]0;x".into(), ..code };
        assert_eq!(control.to_string().parse::<DeviceCode>(), Err(DeviceCodeError));
    }

    #[test]
    fn secrets_differ_and_are_not_printed() {
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        let (first, second) = (Secrets::generate(true, random), Secrets::generate(true, random));
        assert_ne!(first, second);
        let json = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Secrets>(&json).unwrap(), first);
        assert_eq!(format!("{first:?}"), "Secrets(..)");
        let shown = format!("{:?}", Keys::new(&first).unwrap());
        assert!(shown.contains("FixedSecret(..)") && shown.contains("SigningKey, "), "{shown}");
    }
}
