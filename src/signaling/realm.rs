//! Realms: clients of different ones do not know of each other.

use std::fmt;
use std::sync::Arc;

/// The name of a realm; the default one has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Realm(Option<Arc<str>>);

impl Realm {
    /// Takes a name; an empty one is that of the default realm.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self((!name.is_empty()).then(|| name.into()))
    }

    /// Returns the name, empty for the default realm.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
