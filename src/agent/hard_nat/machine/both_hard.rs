//! Two hard sides: which of them leads, and what [`Mutual`] decides.

use super::{
    BUSY_WAIT, Candidate, CandidateKind, HardNat, HardNatOutput, Instant, MAX_TIME, MessageBody, Mutual,
    MutualOutput, ProbeSource, SprayMessage, SprayRefusal, SprayStatus, State, is_known_ip, is_own_address,
};
use crate::agent::hard_nat::limits::MAX_PACKETS;
use std::net::Ipv4Addr;

const _: () = assert!(super::super::mutual::MAX_SENT <= MAX_PACKETS);

impl HardNat {
    /// Handles the request of a hard side at another one.
    pub(super) fn handle_request_of_hard_side(&mut self, now: Instant, id: u32) {
        if let Err(refusal) = self.follow(now, id) {
            self.send(id, MessageBody::Refuse(refusal));
        }
    }

    /// Takes part as the following side. Of two requests at the same time the one with the higher id counts.
    fn follow(&mut self, now: Instant, id: u32) -> Result<(), SprayRefusal> {
        if let Some((refusal, status)) = self.own_refusal() {
            self.outputs.push_back(HardNatOutput::Status(status));
            return Err(refusal);
        }
        // Each attempt has the server asked eight times.
        if self.followed_at.is_some_and(|at| now < at + BUSY_WAIT) {
            return Err(SprayRefusal::Busy);
        }
        let permit = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.config.record.acquire().ok_or(SprayRefusal::Busy)?,
            State::Requesting { id: own, permit, .. } if own < id => permit,
            other => {
                let leads = matches!(other, State::Requesting { .. });
                self.state = other;
                return if leads { Ok(()) } else { Err(SprayRefusal::Busy) };
            }
        };
        self.followed_at = Some(now);
        let mutual = Box::new(Mutual::following(now, &mut self.rng));
        self.state = State::Mutual { id, permit, mutual, target: None, end: now + MAX_TIME };
        self.flush_mutual(now);
        Ok(())
    }

    /// Handles a message that only two hard sides exchange.
    pub(super) fn handle_mutual_message(
        &mut self,
        now: Instant,
        SprayMessage { id, body }: SprayMessage,
        remotes: &[Candidate],
    ) {
        if self.attempt_id() != Some(id) {
            return;
        }
        if let MessageBody::Window { window, .. } = body
            && matches!(self.state, State::Requesting { .. } | State::Mutual { .. })
            && !self.is_reflexive(window.ip, remotes)
        {
            return self.refuse_address(now, is_known_ip(window.ip.into(), remotes));
        }
        match (std::mem::replace(&mut self.state, State::Idle), body) {
            (State::Requesting { id, permit, .. }, MessageBody::Window { .. }) => {
                let mutual = Box::new(Mutual::leading());
                self.state = State::Mutual { id, permit, mutual, target: None, end: now + MAX_TIME };
            }
            (other, _) => self.state = other,
        }
        let State::Mutual { mutual, .. } = &mut self.state else { return };
        match body {
            MessageBody::Window { round, window } => {
                mutual.handle_window(now, round, window, &mut self.rng);
            }
            MessageBody::Again { round } => mutual.handle_again(now, round, &mut self.rng),
            MessageBody::Started { round } => mutual.handle_started(round),
            _ => {}
        }
        self.flush_mutual(now);
    }

    /// Returns whether the other side has a server-reflexive candidate of this address, and it may be probed.
    pub(super) fn is_reflexive(&self, ip: Ipv4Addr, remotes: &[Candidate]) -> bool {
        let is_offered = remotes.iter().any(|remote| {
            remote.kind == CandidateKind::ServerReflexive
                && is_own_address(remote)
                && remote.address.ip() == ip
        });
        is_offered && self.may_probe(ip.into(), remotes)
    }

    pub(super) fn flush_mutual(&mut self, now: Instant) {
        loop {
            let State::Mutual { mutual, .. } = &mut self.state else { return };
            let Some(output) = mutual.poll_output() else { return };
            match output {
                MutualOutput::Message(body) => {
                    let id = self.attempt_id().unwrap_or_default();
                    self.send(id, body);
                }
                MutualOutput::CloseSockets => self.outputs.push_back(HardNatOutput::CloseSockets),
                MutualOutput::OpenSockets(count) => {
                    self.outputs.push_back(HardNatOutput::OpenSockets(count));
                }
                MutualOutput::Ask { socket, bytes } => {
                    self.outputs.push_back(HardNatOutput::Ask { socket, bytes });
                }
                MutualOutput::Begin { own, theirs } => self.begin_mutual(now, own, theirs),
                MutualOutput::Packet { socket, to, ttl } => {
                    let from = ProbeSource::Extra(socket);
                    self.outputs.push_back(HardNatOutput::Probe { from, to, ttl });
                }
                MutualOutput::End(refusal) => {
                    let has_failed = refusal == SprayRefusal::Failed;
                    return self.stop(now, refusal, has_failed.then_some(SprayStatus::Failed));
                }
            }
        }
    }

    /// Enters the attempt before its first packet. All rounds go to one address.
    fn begin_mutual(&mut self, now: Instant, own: Ipv4Addr, theirs: Ipv4Addr) {
        let State::Mutual { permit, target, .. } = &mut self.state else { return };
        let is_first = target.is_none();
        if *target.get_or_insert(theirs) != theirs {
            return self.stop(now, SprayRefusal::Address, None);
        }
        // As many packets as a spray has.
        if is_first && !permit.enter(now, [own.into(), theirs.into()], false) {
            return self.stop(now, SprayRefusal::Recent, Some(SprayStatus::Recent));
        }
        tracing::debug!(%own, %theirs, "both NATs are predicted");
        self.outputs.push_back(HardNatOutput::Status(SprayStatus::Running));
    }
}
