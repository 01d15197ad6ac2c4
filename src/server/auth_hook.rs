//! The look-up service: queries an HTTP server about users that this server does not know. The authenticator interprets the
//! answers.

use crate::dataplane::inbox::{Inbox, WorkerMessage};
use crate::dataplane::lookups::{Lookups, QueuedLookup};
use crate::limits::Limit;
use crate::net::time;
use crate::net::unauthenticated::UnauthenticatedLimits;
use crate::turn_server::auth::{Authenticator, LookupResult, UserKeys, UserQuery, hex_key};
use axum::body;
use hyper::{Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::rustls;

/// Longest response in bytes.
const MAX_RESPONSE: usize = 4096;
/// Shortest time between two log lines about failures.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Configuration of the look-up service.
#[derive(Debug, Clone)]
pub struct HookConfig {
    /// `http://` or `https://`; queries are POSTed there.
    pub url: String,
    /// Time for one query; default 2 s.
    pub deadline: Duration,
    /// How long an answer about a known user is cached; default 300 s.
    pub cache: Duration,
    /// The same for an unknown user; default 10 s.
    pub negative_cache: Duration,
    /// Most cached answers; default 10 000.
    pub max_cached: usize,
    /// Most queries at a time; default 64. A quarter of them is reserved for names that were found before.
    pub max_in_flight: usize,
    /// Queries a second about other names, from one network (IPv4 /24, IPv6 /48), twice as many at once; default 20.
    pub per_network: u32,
}

impl HookConfig {
    /// Queries `url`, with the defaults.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }
}

impl Default for HookConfig {
    /// Without a server: `url` must be set.
    fn default() -> Self {
        Self {
            url: String::new(),
            deadline: Duration::from_secs(2),
            cache: Duration::from_secs(300),
            negative_cache: Duration::from_secs(10),
            max_cached: 10_000,
            max_in_flight: 64,
            per_network: 20,
        }
    }
}

/// The service before the workers exist.
#[derive(Debug)]
pub(super) struct AuthHook {
    config: HookConfig,
    client: HookClient,
    known: mpsc::Receiver<QueuedLookup>,
    unknown: mpsc::Receiver<QueuedLookup>,
}

#[derive(Debug, Serialize)]
struct Body<'a> {
    user: &'a str,
    realm: &'a str,
}

#[derive(Debug, Deserialize)]
struct Answer {
    password: Option<String>,
    md5: Option<String>,
    sha256: Option<String>,
    expires: Option<u64>,
}

/// Why a query failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum HookError {
    #[error("no response in time")]
    TimedOut,
    #[error("the server cannot be reached, or closed the connection")]
    Unreachable,
    #[error("status {0}")]
    Status(u16),
    #[error("the response is no JSON object with password or md5")]
    Malformed,
}

/// Creates the service and the workers' queues to it; without a configuration there is none. `unlimited_from` of the unauthenticated limits holds here
/// too.
pub(super) fn open(
    config: Option<HookConfig>,
    unauthenticated: &UnauthenticatedLimits,
) -> io::Result<(Option<AuthHook>, Lookups)> {
    let Some(config) = config else { return Ok((None, Lookups::default())) };
    let unlimited_from = unauthenticated.unlimited_from.clone().into();
    let (lookups, [known, unknown]) = Lookups::new(config.per_network, unlimited_from);
    let client = HookClient::new(&config)?;
    Ok((Some(AuthHook { config, client, known, unknown }), lookups))
}

impl AuthHook {
    /// Runs until all workers have stopped. Several workers' equal queries are sent once.
    pub(super) async fn run(mut self, authority: Arc<Authenticator>, workers: Arc<[Inbox]>) {
        let most = self.config.max_in_flight;
        let most_others = most - most / 4;
        let mut waiting: HashMap<Arc<UserQuery>, Vec<usize>> = HashMap::new();
        let mut queries: JoinSet<(Arc<UserQuery>, Result<LookupResult, HookError>)> = JoinSet::new();
        let mut failures = Failures::default();
        loop {
            let next = tokio::select! {
                biased;
                Some(Ok((query, outcome))) = queries.join_next() => {
                    let is_answered = outcome.is_ok();
                    match outcome {
                        Ok(verdict) => authority.store_lookup(time::now(), Arc::clone(&query), verdict),
                        Err(error) => failures.note(error),
                    }
                    for worker in waiting.remove(&query).unwrap_or_default() {
                        let done = WorkerMessage::LookupDone { query: Arc::clone(&query), is_answered };
                        workers[worker].send(done).await;
                    }
                    continue;
                }
                known = self.known.recv(), if queries.len() < most => known,
                other = self.unknown.recv(), if queries.len() < most_others => other,
            };
            let Some((worker, query)) = next else { return };
            let workers_waiting = waiting.entry(Arc::clone(&query)).or_default();
            if workers_waiting.is_empty() {
                queries.spawn(self.client.clone().query(query));
            }
            if !workers_waiting.contains(&worker) {
                workers_waiting.push(worker);
            }
            if queries.len() >= most_others {
                Limit::HookMaxInFlight.reached(most);
            }
        }
    }
}

/// Failures since the last log line.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    logged: Option<Instant>,
}

impl Failures {
    fn note(&mut self, error: HookError) {
        self.count += 1;
        let now = time::now().mono;
        if self.logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            tracing::warn!(%error, failures = self.count, "user look-up failed");
            *self = Self { count: 0, logged: Some(now) };
        }
    }
}

#[derive(Debug, Clone)]
struct HookClient {
    client: Client<HttpsConnector<HttpConnector>, body::Body>,
    url: Arc<str>,
    deadline: Duration,
}

impl HookClient {
    fn new(config: &HookConfig) -> io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        // The system's certificates are read only when needed: small containers have none.
        let connector = if config.url.starts_with("https:") {
            HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?.https_only()
        } else {
            let tls = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http()
        };
        let client = Client::builder(TokioExecutor::new()).build(connector.enable_http1().build());
        Ok(Self { client, url: config.url.as_str().into(), deadline: config.deadline })
    }

    async fn query(self, query: Arc<UserQuery>) -> (Arc<UserQuery>, Result<LookupResult, HookError>) {
        let outcome = tokio::time::timeout(self.deadline, self.exchange(&query)).await;
        (query, outcome.unwrap_or(Err(HookError::TimedOut)))
    }

    async fn exchange(&self, query: &UserQuery) -> Result<LookupResult, HookError> {
        let body = serde_json::to_vec(&Body { user: &query.user, realm: &query.realm });
        let body = body.map_err(|_| HookError::Malformed)?;
        let request = Request::post(&*self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body::Body::from(body))
            .map_err(|_| HookError::Unreachable)?;
        let response = self.client.request(request).await.map_err(|_| HookError::Unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(LookupResult::Unknown),
            status => return Err(HookError::Status(status.as_u16())),
        }
        let body = body::to_bytes(body::Body::new(response.into_body()), MAX_RESPONSE).await;
        let answer = serde_json::from_slice(&body.map_err(|_| HookError::Unreachable)?);
        verdict(query, &answer.map_err(|_| HookError::Malformed)?).ok_or(HookError::Malformed)
    }
}

/// Parses an answer: a password, from which both keys are derived, or the keys.
fn verdict(query: &UserQuery, answer: &Answer) -> Option<LookupResult> {
    let keys = match (&answer.password, &answer.md5) {
        (Some(password), None) => UserKeys::of_password(&query.user, &query.realm, password),
        (None, Some(md5)) => {
            let sha256 = match &answer.sha256 {
                Some(text) => Some(hex_key(text)?),
                None => None,
            };
            UserKeys { md5: Some(hex_key(md5)?), sha256 }
        }
        _ => return None,
    };
    Some(LookupResult::Known { keys, expires_unix: answer.expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<LookupResult> {
        let query = UserQuery { user: "alice".into(), realm: "r".into() };
        verdict(&query, &serde_json::from_str(json).ok()?)
    }

    #[test]
    fn an_answer_has_a_password_or_keys() {
        let keys = UserKeys::of_password("alice", "r", "pw");
        let of_password = read(r#"{"password": "pw", "expires": 7}"#);
        assert_eq!(of_password, Some(LookupResult::Known { keys, expires_unix: Some(7) }));
        let md5 = "00112233445566778899aabbccddeeff";
        let of_key = read(&format!(r#"{{"md5": "{md5}"}}"#));
        assert!(matches!(
            of_key,
            Some(LookupResult::Known { keys: UserKeys { md5: Some(_), sha256: None }, .. })
        ));
        assert!(read(&format!(r#"{{"md5": "{md5}", "sha256": "{md5}{md5}"}}"#)).is_some());
        for bad in ["{}", r#"{"md5": "12"}"#, r#"{"sha256": "12"}"#, "[]", "x", r#"{"password": 1}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
