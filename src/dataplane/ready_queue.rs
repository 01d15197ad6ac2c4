//! The sockets and queues that a worker serves in the next iteration, each once and in order.

use mio::Token;
use std::collections::VecDeque;

/// The worker's inbox. Listening sockets and relay sockets have the tokens from zero on.
pub(crate) const INBOX: Token = Token(usize::MAX);
/// The TCP connections that have data. The system does not report this token: the worker checks it in every iteration.
pub(crate) const TCP_CONNECTIONS: Token = Token(usize::MAX - 1);
/// The batches of packets from other workers; checked in every iteration.
pub(crate) const WORKER_CHANNELS: Token = Token(usize::MAX - 2);

/// A queue of tokens without duplicates.
#[derive(Debug, Default)]
pub(crate) struct ReadyQueue {
    queue: VecDeque<Token>,
    /// Whether a token is in the queue, by its index.
    queued: Vec<bool>,
}

impl ReadyQueue {
    /// Returns the index of a token: the three that belong to no socket come first.
    fn index(token: Token) -> usize {
        token.0.wrapping_add(3)
    }

    /// Appends a token, unless it is in the queue.
    pub(crate) fn push(&mut self, token: Token) {
        let index = Self::index(token);
        if index >= self.queued.len() {
            self.queued.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.queued[index], true) {
            self.queue.push_back(token);
        }
    }

    /// Removes the first token.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        let token = self.queue.pop_front()?;
        self.queued[Self::index(token)] = false;
        Some(token)
    }

    /// Returns the number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether no token is in the queue.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_queued_once_and_leaves_in_order() {
        let mut ready = ReadyQueue::default();
        for token in [INBOX, Token(7), TCP_CONNECTIONS, Token(7), INBOX, Token(0), WORKER_CHANNELS] {
            ready.push(token);
        }
        assert_eq!((ready.len(), ready.pop()), (5, Some(INBOX)));
        ready.push(INBOX);
        let rest: Vec<_> = std::iter::from_fn(|| ready.pop()).collect();
        assert_eq!(rest, [Token(7), TCP_CONNECTIONS, Token(0), WORKER_CHANNELS, INBOX]);
        assert!(ready.is_empty());
    }
}
