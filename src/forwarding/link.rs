//! The current session of a connection that is lost and re-established.

use super::session::Session;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a new local connection waits for a session; then it is refused.
pub(crate) const SESSION_WAIT: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug, Clone)]
pub(crate) struct Link(watch::Receiver<Option<Arc<Session>>>);

/// Sets the session of a [`Link`].
#[derive(Debug)]
pub(crate) struct LinkSetter(watch::Sender<Option<Arc<Session>>>);

/// Creates a link without a session.
pub(crate) fn link() -> (LinkSetter, Link) {
    let (setter, link) = watch::channel(None);
    (LinkSetter(setter), Link(link))
}

impl LinkSetter {
    /// Sets the session, or its loss.
    pub(crate) fn set(&self, session: Option<Arc<Session>>) {
        self.0.send_replace(session);
    }
}

impl Link {
    /// Returns the session; `None` if there is none now.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.0.borrow().clone()
    }

    /// Waits up to [`SESSION_WAIT`] for a session.
    pub(crate) async fn session(&self) -> Option<Arc<Session>> {
        let mut sessions = self.0.clone();
        let session = timeout(SESSION_WAIT, sessions.wait_for(Option::is_some)).await.ok()?.ok()?;
        session.clone()
    }
}
