//! Revoking a tag: `POST /revoke?tag=…` and `DELETE /revoke?tag=…`, with the admin key, or a key
//! or JWT with the scope `admin`.
//!
//! A revocation holds for signalling, for new requests to the relay and for the tag's allocations on every worker, also after a
//! restart, until the last credentials minted for the tag have expired.

use super::ServerError;
use super::request_source::IsForwarded;
use crate::dataplane::inbox::{Inbox, WorkerMessage};
use crate::net::time::now;
use crate::signaling::wire::Tag;
use crate::signaling::{Handle, Refusal, bearer, status_of};
use crate::state::{State, StateError};
use crate::turn_server::auth::RevocationList;
use axum::extract::{self, ConnectInfo, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// The file in the state folder: one tag a line, after the Unix time when its revocation ends.
const FILE: &str = "revoked";

/// Loads the revocations from the state folder.
pub(super) fn open(state: &State, cap: usize) -> Result<Arc<RevocationList>, ServerError> {
    let text = state.kept(FILE)?;
    let lines: Option<Vec<(u64, &str)>> = text.lines().map(read_line).collect();
    let lines = lines.ok_or_else(|| StateError::Damaged(state.folder.join(FILE)))?;
    let revoked = RevocationList::new(cap);
    let unix = now().unix;
    for (until, tag) in lines.into_iter().filter(|(until, _)| unix < *until) {
        if let Err(error) = revoked.revoke(unix, tag, until) {
            tracing::error!(%error, "the others in the state folder count no more");
            break;
        }
    }
    Ok(Arc::new(revoked))
}

fn read_line(line: &str) -> Option<(u64, &str)> {
    let (until, tag) = line.split_once(' ')?;
    Some((until.parse().ok()?, tag))
}

/// What a revocation needs.
pub(super) struct RevocationState {
    pub(super) revoked: Arc<RevocationList>,
    pub(super) signaling: Handle,
    pub(super) workers: Arc<[Inbox]>,
    /// Lifetime of minted credentials.
    pub(super) ttl: Duration,
    /// Where revocations are saved; the lock serialises writers.
    pub(super) state: Mutex<Arc<State>>,
}

/// Routes `/revoke`.
pub(super) fn router(revocation: RevocationState) -> Router {
    Router::new().route("/revoke", post(revoke).delete(restore)).with_state(Arc::new(revocation))
}

type RevocationExtractor = extract::State<Arc<RevocationState>>;
type Source = (ConnectInfo<SocketAddr>, Extension<IsForwarded>);

#[derive(Deserialize)]
struct TagQuery {
    tag: Option<String>,
}

async fn revoke(
    extract::State(revocation): RevocationExtractor,
    (ConnectInfo(peer), Extension(forwarded)): Source,
    Query(query): Query<TagQuery>,
    asked: HeaderMap,
) -> Response {
    let tag = match revocation.admit((peer, forwarded), &asked, query) {
        Ok(tag) => tag,
        Err((status, error)) => return refused(status, &error),
    };
    let unix = now().unix;
    let until = unix.saturating_add(revocation.ttl.as_secs());
    if let Err(full) = revocation.revoked.revoke(unix, tag.as_str(), until) {
        return refused(StatusCode::INSUFFICIENT_STORAGE, &full.to_string());
    }
    let name: Arc<str> = tag.as_str().into();
    for worker in revocation.workers.iter() {
        worker.send(WorkerMessage::Revoked { name: Arc::clone(&name) }).await;
    }
    revocation.signaling.revoke(tag.clone()).await;
    tracing::info!(tag = %crate::ids::Pii(&tag), "revoked");
    match revocation.save().await {
        Ok(()) => Json(json!({ "tag": tag, "until": until })).into_response(),
        Err(error) => {
            let error = format!("revoked, but not after a restart: {error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

async fn restore(
    extract::State(revocation): RevocationExtractor,
    (ConnectInfo(peer), Extension(forwarded)): Source,
    Query(query): Query<TagQuery>,
    asked: HeaderMap,
) -> Response {
    let tag = match revocation.admit((peer, forwarded), &asked, query) {
        Ok(tag) => tag,
        Err((status, error)) => return refused(status, &error),
    };
    if !revocation.revoked.restore(tag.as_str()) {
        return refused(StatusCode::NOT_FOUND, "this tag is not revoked");
    }
    tracing::info!(tag = %crate::ids::Pii(&tag), "no longer revoked");
    match revocation.save().await {
        Ok(()) => Json(json!({ "tag": tag })).into_response(),
        Err(error) => {
            let error = format!("no longer revoked, but again after a restart: {error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

impl RevocationState {
    /// Authorises a request; returns its tag, or the status and error. A key in the URL would appear in logs.
    fn admit(
        &self,
        (peer, forwarded): (SocketAddr, IsForwarded),
        asked: &HeaderMap,
        query: TagQuery,
    ) -> Result<Tag, (StatusCode, String)> {
        if forwarded == IsForwarded(true) {
            return Err((
                StatusCode::FORBIDDEN,
                "not by way of an HTTP proxy: ask the server itself".to_owned(),
            ));
        }
        let unknown = || (StatusCode::UNAUTHORIZED, "show the admin key: Authorization: Bearer …".to_owned());
        let (shown, is_page) = (bearer(asked).ok_or_else(unknown)?, asked.contains_key(header::ORIGIN));
        let admitted = self.signaling.admit_operator(now(), peer.ip(), shown, is_page);
        let admin =
            admitted.and_then(|admitted| admitted.scopes.admin.then_some(()).ok_or(Refusal::Scope("admin")));
        admin.map_err(|refusal| (status_of(refusal), refusal.to_string()))?;
        // The file has one tag a line.
        let tag = query.tag.filter(|tag| !tag.contains(char::is_control)).and_then(Tag::new);
        tag.ok_or_else(|| (StatusCode::BAD_REQUEST, "name a tag: /revoke?tag=…".to_owned()))
    }

    /// Saves the revocations.
    async fn save(&self) -> Result<(), StateError> {
        let guard = self.state.lock().await;
        let mut text = String::new();
        for (tag, until) in self.revoked.all(now().unix) {
            let _ = writeln!(text, "{until} {tag}");
        }
        let state = Arc::clone(&guard);
        let kept = tokio::task::spawn_blocking(move || state.keep(FILE, &text)).await;
        kept.unwrap_or_else(|panic| {
            Err(StateError::Io { path: FILE.into(), source: std::io::Error::other(panic) })
        })
    }
}

fn refused(status: StatusCode, error: &str) -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let challenge = challenge.into_iter().filter(|_| status == StatusCode::UNAUTHORIZED);
    (status, AppendHeaders(challenge), Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_counts_again_and_a_damaged_file_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let state = State::open(&temporary.path().join("state")).unwrap();
        assert!(open(&state, 9).unwrap().all(0).is_empty());
        let unix = now().unix;
        state.keep(FILE, &format!("{} a tag\n{} gone\n", unix + 60, unix - 1)).unwrap();
        assert_eq!(open(&state, 9).unwrap().all(0), [("a tag".into(), unix + 60)]);
        for damaged in ["a\n", "soon a\n", "60\n"] {
            state.keep(FILE, damaged).unwrap();
            let error = open(&state, 9).unwrap_err().to_string();
            assert!(error.contains("revoked") && error.contains("damaged"), "{error}");
        }
    }
}
