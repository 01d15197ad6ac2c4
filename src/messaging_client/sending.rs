//! Sending: a copy for each device of the recipient, repeated under the same id until the server has answered. Pure.

use super::encryption::{self, Content, CopyOf, SealError};
use super::error::{ErrorCode, RequestError};
use super::event::{Protection, Sent};
use super::known_peers::{Distrust, PeerKeys, TrustedDevice};
use super::machine::{
    Answer, KnownDevices, Machine, Operation, Pending, Question, not_found, refused, unix_ms,
};
use super::party_name::PartyName;
use crate::clock::Now;
use crate::messaging_wire::{self, Body, DeviceCopy, ErrorBody, FixedBytes, MAX_FRAME, Request, Send};
use rand::RngCore;

/// How often a message is sent again because the recipient's devices have changed.
const MAX_ATTEMPTS: u32 = 4;
/// The digits of a ULID.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A message to send.
#[derive(Debug)]
pub(super) struct SendOperation {
    operation: Operation,
    to: PartyName,
    text: String,
    message_id: String,
    sent_at: u64,
    /// A recipient without keys is refused.
    encrypted_only: bool,
    attempts: u32,
    /// Answers for the recipient's devices to this question or earlier ones are not used.
    after: Question,
    /// A frame with it was sent on this connection.
    pub(super) is_sent: bool,
    protection: Protection,
    devices: usize,
    /// Of a copy for the own devices: what the user is told when it is done.
    sent: Option<Sent>,
    copy_of: Option<CopyOf>,
}

/// A message as the user gives it.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) to: PartyName,
    pub(super) text: String,
    pub(super) encrypted_only: bool,
}

impl Machine {
    /// Sends a message: now, or after the next login.
    pub(super) fn send(&mut self, operation: Operation, draft: Draft, now: Now) {
        let sent_at = unix_ms(now);
        self.sends.push(SendOperation {
            operation,
            to: draft.to,
            text: draft.text,
            message_id: ulid(sent_at, &mut self.random),
            sent_at,
            encrypted_only: draft.encrypted_only,
            attempts: 0,
            after: Question::default(),
            is_sent: false,
            protection: Protection::None,
            devices: 0,
            sent: None,
            copy_of: None,
        });
        self.advance_sends(now);
    }

    /// Sends what has devices to be sent to; asks for the devices of the others' recipients.
    pub(super) fn advance_sends(&mut self, now: Now) {
        if !self.is_open() {
            return;
        }
        for mut send in std::mem::take(&mut self.sends) {
            let known = match send.is_sent {
                true => None,
                false => self.devices_of(&send.to, send.after, now),
            };
            match known.map(|known| self.prepare(&mut send, &known)) {
                None => self.sends.push(send),
                Some(Ok(request)) => {
                    let operation = send.operation;
                    send.is_sent = true;
                    self.sends.push(send);
                    self.request(&request, Pending::Send(operation), now);
                }
                Some(Err(error)) => self.fail(send, error),
            }
        }
    }

    fn prepare(&mut self, send: &mut SendOperation, known: &KnownDevices) -> Result<Request, RequestError> {
        let party = || send.to.clone();
        let keys = known
            .keys
            .as_ref()
            .map_err(|source| RequestError::Distrusted { party: party(), source: *source })?;
        let content = match keys {
            PeerKeys::Legacy if known.is_unknown => return Err(not_found(&send.to)),
            PeerKeys::Legacy if send.encrypted_only => {
                return Err(RequestError::NotEncrypted { party: party() });
            }
            PeerKeys::Legacy => {
                (send.protection, send.devices) = (Protection::None, 0);
                messaging_wire::Content::Text(send.text.clone())
            }
            PeerKeys::Devices { devices, .. } => {
                let is_own = send.to == self.account.party;
                let devices: Vec<_> =
                    devices.iter().filter(|device| !is_own || device.device != self.device).collect();
                if devices.is_empty() {
                    return Err(RequestError::NoDevice { party: party() });
                }
                (send.protection, send.devices) = (Protection::EndToEnd, devices.len());
                let copies = devices.into_iter().map(|device| self.encrypt(send, device));
                messaging_wire::Content::Encrypted(copies.collect::<Result<_, _>>()?)
            }
        };
        let (to, message_id) = (send.to.as_wire().to_owned(), send.message_id.clone());
        let request = Request::Send(Send { to, message_id, content });
        match request.to_frame(u64::MAX).len() <= MAX_FRAME {
            true => Ok(request),
            false => Err(RequestError::TooLong),
        }
    }

    fn encrypt(&mut self, send: &SendOperation, device: &TrustedDevice) -> Result<DeviceCopy, RequestError> {
        let content = Content {
            from: self.account.party.as_wire().to_owned(),
            from_key: FixedBytes(self.account.keys.signing.public()),
            to: send.to.as_wire().to_owned(),
            to_key: FixedBytes(device.encryption_key),
            message_id: send.message_id.clone(),
            sent_at: send.sent_at,
            certificate: self.certificate,
            copy_of: send.copy_of.clone(),
            text: send.text.clone(),
        };
        let body = encryption::seal(&content, &self.account.keys.signing, &mut self.random);
        let body = body.map_err(|error| match error {
            SealError::TooLong => RequestError::TooLong,
            SealError::Key => {
                RequestError::Distrusted { party: send.to.clone(), source: Distrust::Certificate }
            }
        })?;
        Ok(DeviceCopy { device: device.device, body: Body(body) })
    }

    pub(super) fn on_sent(&mut self, operation: Operation, _answer: messaging_wire::Sent, now: Now) {
        let Some(at) = self.sends.iter().position(|send| send.operation == operation) else { return };
        let SendOperation { sent, to, text, message_id, sent_at, protection, devices, .. } =
            self.sends.remove(at);
        if let Some(sent) = sent {
            return self.done(operation, Ok(Answer::Sent(sent)));
        }
        let sent = Sent { message_id: message_id.clone(), protection, devices };
        if !self.has_other_devices || to == self.account.party {
            return self.done(operation, Ok(Answer::Sent(sent)));
        }
        self.sends.push(SendOperation {
            operation,
            to: self.account.party.clone(),
            text,
            message_id: format!("copy-{message_id}"),
            sent_at,
            encrypted_only: true,
            attempts: 0,
            after: Question::default(),
            is_sent: false,
            protection: Protection::None,
            devices: 0,
            sent: Some(sent),
            copy_of: Some(CopyOf { to: to.as_wire().to_owned(), message_id }),
        });
        self.advance_sends(now);
    }

    /// Ends a message that cannot be sent. A copy is only a convenience: the message itself was sent.
    fn fail(&mut self, send: SendOperation, error: RequestError) {
        match send.sent {
            Some(sent) => self.done(send.operation, Ok(Answer::Sent(sent))),
            None => self.done(send.operation, Err(error)),
        }
    }

    pub(super) fn on_send_refused(&mut self, operation: Operation, mut error: ErrorBody, now: Now) {
        let Some(at) = self.sends.iter().position(|send| send.operation == operation) else { return };
        let is_about_devices = matches!(error.code, ErrorCode::DevicesChanged | ErrorCode::PlaintextRefused);
        let send = &mut self.sends[at];
        send.attempts += 1;
        if !is_about_devices || send.attempts >= MAX_ATTEMPTS {
            let send = self.sends.remove(at);
            return self.fail(send, refused(error));
        }
        (send.is_sent, send.after) = (false, self.question);
        let party = send.to.clone();
        match error.devices.take() {
            Some(devices) => {
                let question = self.next_question();
                self.insert_devices(&party, (devices, false), (question, now.mono), now);
            }
            None => {
                self.known_devices.remove(&party);
                self.advance_sends(now);
            }
        }
    }
}

/// Makes a ULID: 48 bits of time and 80 random bits in Crockford's base 32.
fn ulid(unix_ms: u64, random: &mut impl RngCore) -> String {
    let mut low = [0; 16];
    random.fill_bytes(&mut low[6..]);
    let number = u128::from(unix_ms) << 80 | u128::from_be_bytes(low);
    let digit = |n: u32| char::from(DIGITS[(number >> (5 * n)) as usize & 31]);
    (0..26).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn ids_sort_by_time_and_differ() {
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        let [first, second, third] = [1_000, 1_000, 2_000].map(|time| ulid(time, random));
        assert_ne!(first, second);
        assert!(first < third && second < third);
        assert_eq!(first.len(), 26);
        // The example of the ULID specification.
        assert_eq!(&ulid(1_469_918_176_385, random)[..10], "01ARYZ6S41");
    }
}
