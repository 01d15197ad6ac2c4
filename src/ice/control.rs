//! Messages of the agent's own that are authenticated as checks are, and what a spray of probes needs (see `src/agent/hard_nat/`).
//!
//! A message is a Binding indication with the attribute [`CONTROL`]; a peer that does not know it drops it, as it may do with every
//! indication (RFC 8445 section 11).

use super::binding::{Check, target_ufrag};
use super::candidate::Candidate;
use super::machine::IceAgent;
use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
use rand::Rng;

/// The attribute of a message; comprehension-optional, of the range for designated use.
const CONTROL: u16 = 0xC0A7;

impl IceAgent {
    /// Writes a message to the peer; `None` while its credentials are not known.
    pub(crate) fn control_message(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        let id = TransactionId::new(self.rng.random());
        let (local, remote) = (&self.current.local, self.current.remote.as_ref()?);
        let username = format!("{}:{}", remote.ufrag(), local.ufrag());
        let message = Builder::new(Class::Indication, Method::BINDING, id)
            .attribute(attr::USERNAME, username.as_bytes())
            .attribute(CONTROL, content);
        Some(message.integrity(&remote.key()).fingerprint().finish())
    }

    /// Returns the content of a message of the peer; `None` if it is another message, or not authentic.
    pub(crate) fn read_control_message<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let message = Message::parse(bytes).ok()?;
        let is_control = message.method() == Method::BINDING && message.class() == Class::Indication;
        is_control.then(|| message.verify(&self.local_key(&message)?)?.get(CONTROL))?
    }

    /// Returns whether a message is an authentic check of the peer.
    pub(crate) fn is_authentic_check(&self, bytes: &[u8]) -> bool {
        let Ok(message) = Message::parse(bytes) else { return false };
        message.method() == Method::BINDING
            && message.class() == Class::Request
            && self.local_key(&message).is_some_and(|key| message.verify(&key).is_some())
    }

    fn local_key(&self, message: &Message<'_>) -> Option<crate::stun::Key> {
        let (ufrag, local) = (target_ufrag(message)?, &self.current.local);
        (local.ufrag() == ufrag).then(|| local.key())
    }

    /// Writes a check that belongs to no pair: its response is not waited for. The peer answers it, and checks where it came from.
    pub(crate) fn probe(&mut self) -> Option<Vec<u8>> {
        let id = TransactionId::new(self.rng.random());
        let priority = self.locals.first()?.reflexive_priority();
        let check = Check { role: self.role, tie_breaker: self.tie_breaker, priority, nomination: None };
        Some(check.to_request(id, &self.current.local, self.current.remote.as_ref()?))
    }

    /// Adds a host candidate whose socket reaches one address of the peer only: it is paired with those whose checks arrive.
    pub(crate) fn add_probed_candidate(&mut self, candidate: Candidate) {
        self.locals.push(candidate);
    }

    /// Returns the peer's candidates.
    pub(crate) fn remote_candidates(&self) -> &[Candidate] {
        &self.current.remote_candidates
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CandidateTransport, IceConfig, IceRole};
    use super::*;
    use crate::net::time::mono;

    fn pair() -> [IceAgent; 2] {
        let mut agents = [(IceRole::Controlling, 1), (IceRole::Controlled, 2)]
            .map(|(role, seed)| IceAgent::new(IceConfig::new(role), [seed; 32]));
        let credentials = [0, 1].map(|index| agents[index].local_credentials().clone());
        for (index, agent) in agents.iter_mut().enumerate() {
            let host = Candidate::host(CandidateTransport::Udp, ([192, 0, 2, 1], 4000).into(), 7);
            agent.add_local_candidate(mono(), host);
            agent.set_remote_credentials(mono(), credentials[1 - index].clone());
        }
        agents
    }

    #[test]
    fn a_message_is_read_by_the_peer_only_and_not_if_it_was_changed() {
        let [mut a, b] = pair();
        let message = a.control_message(b"hello").unwrap();
        assert_eq!(b.read_control_message(&message), Some(&b"hello"[..]));
        assert_eq!(a.read_control_message(&message), None);
        assert!(!b.is_authentic_check(&message));
        // FINGERPRINT comes last, and is no protection.
        for index in 0..message.len() - 8 {
            let mut changed = message.clone();
            changed[index] ^= 1;
            assert_eq!(b.read_control_message(&changed), None, "{index}");
        }
    }

    #[test]
    fn a_probe_is_a_check_of_the_peer() {
        let [mut a, mut b] = pair();
        let probe = a.probe().unwrap();
        assert!(b.is_authentic_check(&probe) && !a.is_authentic_check(&probe));
        assert_eq!(b.read_control_message(&probe), None);
        // A socket that is no candidate yet makes no pair; as one it answers and checks.
        let (base, from) = (([192, 0, 2, 9], 5000).into(), ([203, 0, 113, 1], 6000).into());
        b.add_probed_candidate(Candidate::host(CandidateTransport::Udp, base, 0));
        b.handle_message(mono(), base, from, &probe);
        b.handle_timeout(mono());
        let sent: Vec<_> = std::iter::from_fn(|| b.poll_transmit()).collect();
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert!(sent.iter().all(|sent| (sent.local, sent.remote) == (base, from)));
    }
}
