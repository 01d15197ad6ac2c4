//! Password hashes: Argon2id over the text that the client sends, which is to the server any text.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

/// What one hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordCost {
    /// Memory in KiB; default 19456.
    pub memory_kib: u32,
    /// Passes over the memory; default 2.
    pub passes: u32,
}

impl Default for PasswordCost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2 }
    }
}

/// Why a password could not be hashed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordError {
    /// The cost is out of Argon2's range.
    #[error("{0}")]
    Cost(#[from] argon2::Error),
    /// The hash could not be made or read.
    #[error("{0}")]
    Hash(#[from] argon2::password_hash::Error),
}

/// Hashes and verifies passwords.
#[derive(Debug, Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    /// The hash of nothing that anybody knows.
    stand_in: String,
}

impl Passwords {
    /// Makes one for this cost. Computes a hash.
    ///
    /// # Errors
    /// [`PasswordError::Cost`] where the cost is out of range.
    pub fn new(cost: PasswordCost) -> Result<Self, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        // An empty password is never accepted, so nobody logs in with it.
        let stand_in = argon2.hash_password(b"")?.to_string();
        Ok(Self { argon2, stand_in })
    }

    /// Hashes a password with a new salt; returns the PHC string.
    ///
    /// # Errors
    /// [`PasswordError::Hash`].
    pub fn hash(&self, password: &str) -> Result<String, PasswordError> {
        Ok(self.argon2.hash_password(password.as_bytes())?.to_string())
    }

    /// Returns whether a password has this hash. Without one it takes as long and returns `false`, so that a client cannot tell an unknown
    /// user from a wrong password.
    #[must_use]
    pub fn verify(&self, password: &str, hash: Option<&str>) -> bool {
        let known = hash.and_then(|hash| PasswordHash::new(hash).ok());
        let Ok(stand_in) = PasswordHash::new(&self.stand_in) else { return false };
        let verified = self.argon2.verify_password(password.as_bytes(), known.as_ref().unwrap_or(&stand_in));
        verified.is_ok() && known.is_some() && !password.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_its_hash_and_a_salt_of_its_own() {
        let passwords = Passwords::new(PasswordCost { memory_kib: 64, passes: 1 }).unwrap();
        let hashes = [(); 2].map(|()| passwords.hash("411460f7c92d2124a67ea0f4cb5f85").unwrap());
        assert!(
            hashes[0] != hashes[1] && hashes[0].starts_with("$argon2id$v=19$m=64,t=1,p=1$"),
            "{hashes:?}"
        );
        assert!(hashes.iter().all(|hash| passwords.verify("411460f7c92d2124a67ea0f4cb5f85", Some(hash))));
        for (password, hash) in [
            ("0411460f7c92d2124a67ea0f4cb5f85", Some(&*hashes[0])),
            ("", Some(&*hashes[0])),
            ("", None),
            ("411460f7c92d2124a67ea0f4cb5f85", None),
            ("411460f7c92d2124a67ea0f4cb5f85", Some("no hash")),
        ] {
            assert!(!passwords.verify(password, hash), "{password:?} {hash:?}");
        }
    }

    #[test]
    fn a_cost_that_argon2_does_not_have_is_refused() {
        assert!(Passwords::new(PasswordCost { memory_kib: 1, passes: 1 }).is_err());
    }
}
