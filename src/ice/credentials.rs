//! The user name fragment and password of one side ([RFC 8445 section 5.3](https://www.rfc-editor.org/rfc/rfc8445#section-5.3)).

use crate::stun::Key;
use rand::{Rng, RngCore};
use std::fmt;

/// Lengths that RFC 8839 section 5.4 permits.
const UFRAG: std::ops::RangeInclusive<usize> = 4..=256;
const PASSWORD: std::ops::RangeInclusive<usize> = 22..=256;
const ICE_CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A user name fragment or password has the wrong length, or other characters than letters, digits, `+` and `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ICE credentials are malformed")]
pub struct IceCredentialsError;

/// The ICE credentials of one side.
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    ufrag: String,
    password: String,
}

impl IceCredentials {
    /// Takes credentials of a description.
    ///
    /// # Errors
    /// [`IceCredentialsError`] if they violate RFC 8839 section 5.4.
    pub fn new(ufrag: &str, password: &str) -> Result<Self, IceCredentialsError> {
        let is_sound = |text: &str| text.bytes().all(|byte| ICE_CHARACTERS.contains(&byte));
        let fits = UFRAG.contains(&ufrag.len()) && PASSWORD.contains(&password.len());
        match fits && is_sound(ufrag) && is_sound(password) {
            true => Ok(Self { ufrag: ufrag.to_owned(), password: password.to_owned() }),
            false => Err(IceCredentialsError),
        }
    }

    /// Draws credentials of 48 and 144 random bits.
    pub(super) fn random(rng: &mut impl RngCore) -> Self {
        let mut text = |len: usize| -> String {
            (0..len).map(|_| char::from(ICE_CHARACTERS[rng.random_range(0..ICE_CHARACTERS.len())])).collect()
        };
        Self { ufrag: text(8), password: text(24) }
    }

    /// Returns the user name fragment.
    #[must_use]
    pub fn ufrag(&self) -> &str {
        &self.ufrag
    }

    /// Returns the password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    pub(super) fn key(&self) -> Key {
        Key::short_term(&self.password)
    }
}

impl fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceCredentials").field("ufrag", &self.ufrag).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn drawn_credentials_are_well_formed_and_hidden() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let drawn = IceCredentials::random(&mut rng);
        assert_eq!(IceCredentials::new(drawn.ufrag(), drawn.password()), Ok(drawn.clone()));
        assert!(!format!("{drawn:?}").contains(drawn.password()));
        assert_ne!(IceCredentials::random(&mut rng), drawn);
    }

    #[test]
    fn malformed_credentials_are_refused() {
        let password = "x".repeat(22);
        for (ufrag, password) in
            [("abc", &*password), ("abcd", "short"), ("ab d", &password), ("abcd", "ä".repeat(22).as_str())]
        {
            assert_eq!(IceCredentials::new(ufrag, password), Err(IceCredentialsError), "{ufrag}");
        }
    }
}
