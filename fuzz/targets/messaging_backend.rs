//! What is behind a messaging machine: the store in memory, and jobs. Results come late and in any order, except those of appends; some calls
//! fail.

use ginnel::internals::messaging::config::{Config, Policy, Rate};
use ginnel::internals::messaging::crypto::SessionKey;
use ginnel::internals::messaging::machine::{Job, JobResult, RequestId};
use ginnel::internals::messaging::store_calls::call_store;
use ginnel::internals::messaging::store_request::{StoreReply, StoreRequest};
use ginnel::internals::store::{MemoryStore, NewMessage, StoreError, StoreLimits};
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// The key of every session.
pub(crate) const SESSION_KEY: [u8; 16] = [7; 16];

/// Returns a configuration: bit 0 chooses the policy, bit 1 the rates.
pub(crate) fn config(setup: u8) -> Config {
    let policy = if setup & 1 == 0 { Policy::Anyone } else { Policy::Contacts };
    let mut config = Config { policy, ..Config::default() };
    config.limits.rate_keys = 64;
    if setup & 2 == 0 {
        let plenty = Rate::new(1e6, 1e6);
        let limits = &mut config.limits;
        (limits.logins_per_account, limits.logins_per_network) = (plenty, plenty);
        (limits.registrations_per_network, limits.key_exchanges_per_network) = (plenty, plenty);
    }
    config
}

/// A result that the machine does not have yet.
pub(crate) enum Completion {
    Append(RequestId, NewMessage, Result<StoreReply, StoreError>),
    Store(RequestId, Result<StoreReply, StoreError>),
    Job(RequestId, JobResult),
}

pub(crate) struct Backend {
    store: MemoryStore,
    appends: VecDeque<(RequestId, NewMessage, Result<StoreReply, StoreError>)>,
    results: Vec<(RequestId, Result<StoreReply, StoreError>)>,
    jobs: Vec<(RequestId, JobResult)>,
    /// Calls that fail from now on.
    pub(crate) failures: u8,
}

impl Backend {
    pub(crate) fn new(limits: StoreLimits) -> Self {
        Self {
            store: MemoryStore::new(limits, [7; 32]),
            appends: VecDeque::new(),
            results: Vec::new(),
            jobs: Vec::new(),
            failures: 0,
        }
    }

    /// Calls the store at once.
    pub(crate) fn call_now(&self, request: StoreRequest) -> Result<StoreReply, StoreError> {
        let mut called = call_store(&self.store, request);
        let Poll::Ready(result) = called.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("not in memory")
        };
        result
    }

    /// Calls the store, and keeps the result for the machine; returns the reply unless the call has failed.
    pub(crate) fn call(&mut self, id: RequestId, request: StoreRequest) -> Option<StoreReply> {
        let result = match self.failures {
            0 => self.call_now(request.clone()),
            failures => {
                self.failures -= 1;
                Err(if failures == 1 { StoreError::DiskFull } else { StoreError::Overloaded })
            }
        };
        let reply = result.as_ref().ok().cloned();
        match request {
            StoreRequest::Append(message) => self.appends.push_back((id, message, result)),
            _ => self.results.push((id, result)),
        }
        reply
    }

    pub(crate) fn start(&mut self, id: RequestId, job: Job) {
        let result = match job {
            Job::Hash { password } => JobResult::Hash(password),
            Job::Verify { password, hash } => JobResult::Verified(hash == Some(password)),
            Job::SessionKey(_) => JobResult::SessionKey(SessionKey::new(SESSION_KEY)),
        };
        self.jobs.push((id, result));
    }

    /// Takes one of the results: of appends only the oldest.
    pub(crate) fn take(&mut self, which: usize) -> Option<Completion> {
        let appends = self.appends.len().min(1);
        let waiting = appends + self.results.len() + self.jobs.len();
        let index = which.checked_rem(waiting)?;
        if index < appends {
            let (id, message, result) = self.appends.pop_front()?;
            return Some(Completion::Append(id, message, result));
        }
        let index = index - appends;
        Some(match index.checked_sub(self.results.len()) {
            None => {
                let (id, result) = self.results.remove(index);
                Completion::Store(id, result)
            }
            Some(index) => {
                let (id, result) = self.jobs.remove(index);
                Completion::Job(id, result)
            }
        })
    }
}
