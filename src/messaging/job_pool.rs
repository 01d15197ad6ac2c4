//! Threads for password hashes and RSA. The machine bounds what waits for them.

use super::crypto::ServerKey;
use super::machine::{Job, JobResult, RequestId};
use super::password::Passwords;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tokio::sync::mpsc::UnboundedSender;

/// What the jobs work with.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) key: ServerKey,
    pub(super) passwords: Passwords,
}

impl Worker {
    fn perform(&self, job: Job) -> JobResult {
        match job {
            Job::Hash { password } => match self.passwords.hash(&password) {
                Ok(hash) => JobResult::Hash(hash),
                Err(_) => JobResult::Failed,
            },
            Job::Verify { password, hash } => {
                JobResult::Verified(self.passwords.verify(&password, hash.as_deref()))
            }
            Job::SessionKey(ciphertext) => match self.key.decrypt_session_key(&ciphertext) {
                Ok(key) => JobResult::SessionKey(key),
                Err(_) => JobResult::Failed,
            },
        }
    }
}

/// Some threads and their queue. The threads end when it is dropped.
#[derive(Debug)]
pub(super) struct JobPool {
    jobs: Sender<(RequestId, Job)>,
}

impl JobPool {
    /// Starts the threads; results go to `results`.
    ///
    /// # Errors
    /// The system's, where it has no thread.
    pub(super) fn spawn(
        name: &str,
        threads: usize,
        worker: &Arc<Worker>,
        results: &UnboundedSender<(RequestId, JobResult)>,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let (worker, results, queue) = (Arc::clone(worker), results.clone(), Arc::clone(&queue));
            let run = move || {
                while let Some((id, job)) = next(&queue) {
                    // Without a receiver the service has stopped.
                    let _ = results.send((id, worker.perform(job)));
                }
            };
            thread::Builder::new().name(name.to_owned()).spawn(run)?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job; `false` where all threads have ended.
    pub(super) fn push(&self, id: RequestId, job: Job) -> bool {
        self.jobs.send((id, job)).is_ok()
    }
}

fn next(queue: &Mutex<Receiver<(RequestId, Job)>>) -> Option<(RequestId, Job)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
