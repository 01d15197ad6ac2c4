//! Remote candidates of an [`IceEngine`] with a name of multicast DNS in place of the address.

use super::*;
use crate::agent::mdns;

/// Most names that are resolved for one description of the other side.
const MAX_NAMES: usize = 8;

/// The lookups of one generation of candidates.
#[derive(Default)]
pub(super) struct Names {
    lookups: JoinSet<Option<String>>,
    count: usize,
}

impl Names {
    /// Resolves the name of a candidate, if it has one.
    pub(super) fn resolve(&mut self, candidate: &str) {
        let Some(name) = mdns::name_of(candidate).filter(|_| self.count < MAX_NAMES) else { return };
        self.count += 1;
        let (name, candidate) = (name.to_owned(), candidate.to_owned());
        self.lookups.spawn(async move {
            let address = mdns::resolve(name).await?;
            Some(mdns::with_address(&candidate, address))
        });
    }

    /// Waits for the next candidate whose name was resolved.
    pub(super) async fn next(&mut self) -> String {
        while let Some(found) = self.lookups.join_next().await {
            if let Ok(Some(candidate)) = found {
                return candidate;
            }
        }
        std::future::pending().await
    }
}
