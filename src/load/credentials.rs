//! Credentials of the load's clients that are minted.

use crate::turn_client::LongTermCredentials;
use crate::turn_server::auth::RestSecret;

/// Mints credentials of the TURN REST scheme for `name`, valid until `expires_unix`.
#[must_use]
pub(crate) fn rest_credentials(name: &str, secret: &[u8], expires_unix: u64) -> LongTermCredentials {
    let minted = RestSecret::new(secret).issue(name, expires_unix);
    LongTermCredentials::new(&minted.username, &minted.credential)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_credentials_are_those_of_the_scheme() {
        let credentials = rest_credentials("load", b"north", 1_700_000_000);
        assert_eq!(credentials.user, "1700000000:load");
        assert_eq!(credentials.password.len(), 28);
    }
}
