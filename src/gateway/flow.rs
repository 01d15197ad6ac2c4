//! Who is not read for a while because a receiver is slow, and whose virtual connection ends for it. Pure.
//!
//! The wire has no credit, so all that a gateway can do about an endpoint that sends too much on one virtual connection is not to read
//! it at all, which holds up its other ones. So it is held for a limited time only, then that one virtual connection is closed. An
//! endpoint with a single virtual connection harms nobody else: it is held as long as it takes, as by TCP itself. Servers of the
//! HMAC door are told how much they may send on each (command 7) and need not be held.

use super::budget::{Granted, READ};
use super::counters::Why;
use super::end::{End, EndKey, Held};
use super::machine::{Output, Switchboard, Timer};
use super::wire::{Command, ConnId};
use crate::clock::Now;
use crate::limits::Limit;
use std::time::{Duration, Instant};

/// How often within the time that a sender may be held those who take nothing are looked for while memory is short.
const LOOKS: u32 = 8;
/// How many times as long as a sender may be held a frame may take to come whole while memory is short.
const FRAME_PATIENCE: u32 = 2;

impl Switchboard {
    /// Stops reading `from`, whose next frame finds no room on the lane `to` of `conn`; or closes that one, if it has held up its
    /// sender for long enough or its receiver takes nothing. Says which.
    pub(super) fn hold(
        &mut self,
        now: Now,
        from: EndKey,
        (conn, to): (ConnId, usize),
        receiver: EndKey,
    ) -> bool {
        let stalled = self.stalled(now.mono, receiver);
        let patience = self.rules.times.hold;
        let (Some(link), Some(end)) = (self.connections.get_mut(&conn), self.ends.get_mut(from.0)) else {
            return false;
        };
        let lane = &mut link.lanes[to];
        if end.connections.len() > 1 {
            let left = patience.saturating_sub(lane.held_for.max(stalled));
            if left.is_zero() {
                Limit::GatewayQueue.reached(self.rules.limits.queue);
                self.close_slow(now, conn);
                return false;
            }
            self.timers.set(Timer::Hold(from), now.mono + left);
        }
        lane.holds = true;
        end.held = Some(Held::Room(conn, now.mono));
        self.counters.holds += 1;
        true
    }

    /// Says for how long an endpoint has taken nothing of what waits for it.
    fn stalled(&self, now: Instant, receiver: EndKey) -> Duration {
        let end = self.ends.get(receiver.0).filter(|end| !end.outbox.is_empty());
        end.map_or(Duration::ZERO, |end| now.saturating_duration_since(end.progress))
    }

    /// An endpoint was held for as long as it has to be or may be, or its receiver has stalled meanwhile.
    pub(super) fn held_long(&mut self, now: Now, from: EndKey) {
        let (conn, since) = match self.ends.get(from.0).and_then(|end| end.held) {
            Some(Held::Room(conn, since)) => (conn, since),
            Some(Held::Refused) => return self.resume(from),
            _ => return,
        };
        let Some(link) = self.connections.get(&conn) else { return self.resume(from) };
        let is_alone = self.ends.get(from.0).is_some_and(|end| end.connections.len() <= 1);
        let Some(side) = link.side(from).filter(|_| !is_alone) else { return };
        let held = link.lanes[1 - side].held_for + now.mono.saturating_duration_since(since);
        let stalled = link.ends[1 - side].map_or(Duration::ZERO, |receiver| self.stalled(now.mono, receiver));
        let left = self.rules.times.hold.saturating_sub(held.max(stalled));
        if left.is_zero() {
            self.close_slow(now, conn);
        } else {
            self.timers.set(Timer::Hold(from), now.mono + left);
        }
    }

    /// Closes a virtual connection for its slowness, and drops what waits of it.
    fn close_slow(&mut self, now: Now, conn: ConnId) {
        self.counters.slow += 1;
        let Some(ends) = self.connections.get(&conn).map(|link| link.ends) else { return };
        for (side, key) in ends.into_iter().enumerate() {
            let Some(end) = key.and_then(|key| self.ends.get_mut(key.0)) else { continue };
            let dropped = end.outbox.forget(conn);
            end.is_stuck |= dropped > 0;
            self.budget.give_back(dropped);
            if let Some(link) = self.connections.get_mut(&conn) {
                link.lanes[side].waiting = link.lanes[side].waiting.saturating_sub(dropped);
            }
        }
        self.close(now, conn, None);
        self.give_memory();
    }

    /// The end `to` has taken frames of a virtual connection.
    pub(super) fn taken(&mut self, now: Now, to: EndKey, conn: ConnId, bytes: usize) {
        let Some(link) = self.connections.get_mut(&conn) else { return };
        let Some(side) = link.side(to) else { return };
        let sender = link.ends[1 - side];
        let lane = &mut link.lanes[side];
        lane.waiting = lane.waiting.saturating_sub(bytes);
        lane.owed += bytes;
        if lane.waiting == 0 {
            lane.held_for = Duration::ZERO;
        }
        if link.is_closed {
            return self.forget_drained(conn);
        }
        let queue = self.rules.limits.queue;
        let has_room = lane.waiting <= queue / 2;
        let (is_holding, owed) = (lane.holds, lane.owed);
        let Some(sender) = sender else { return };
        if is_holding && has_room && lane.window > 0 {
            self.let_go(now, conn, side, sender);
        }
        if owed >= queue / 2 && self.ends.get(sender.0).is_some_and(super::end::End::has_credit) {
            if let Some(link) = self.connections.get_mut(&conn) {
                link.lanes[side].owed = 0;
            }
            let bytes = u32::try_from(owed).unwrap_or(u32::MAX);
            self.tell(now, sender, Command::Credit { conn, bytes });
        }
    }

    /// The end `from` will take so many bytes more.
    pub(super) fn credit(&mut self, now: Now, from: EndKey, conn: ConnId, bytes: u32) {
        let Some(link) = self.connections.get_mut(&conn).filter(|link| !link.is_closed) else { return };
        let Some(side) = link.side(from) else { return };
        let sender = link.ends[1 - side];
        let lane = &mut link.lanes[side];
        lane.window = lane.window.saturating_add(bytes.into());
        let is_free = lane.holds && lane.window > 0 && lane.waiting <= self.rules.limits.queue / 2;
        if let (true, Some(sender)) = (is_free, sender) {
            self.let_go(now, conn, side, sender);
        }
    }

    /// Reads a sender again that a lane has held.
    fn let_go(&mut self, now: Now, conn: ConnId, side: usize, sender: EndKey) {
        if let Some(Held::Room(held, since)) = self.ends.get(sender.0).and_then(|end| end.held)
            && held == conn
            && let Some(link) = self.connections.get_mut(&conn)
        {
            let lane = &mut link.lanes[side];
            lane.holds = false;
            if lane.waiting > 0 {
                lane.held_for += now.mono.saturating_duration_since(since);
            }
            self.resume(sender);
        }
    }

    /// A virtual connection is closed: whoever was held for its lane `to` is read again.
    pub(super) fn release(&mut self, conn: ConnId, to: usize, sender: EndKey) {
        if let Some(link) = self.connections.get_mut(&conn) {
            link.lanes[to].holds = false;
        }
        let held = self.ends.get(sender.0).and_then(|end| end.held);
        if matches!(held, Some(Held::Room(held, _)) if held == conn) {
            self.resume(sender);
        }
    }

    /// Reads an endpoint again.
    pub(super) fn resume(&mut self, key: EndKey) {
        if let Some(end) = self.ends.get_mut(key.0) {
            end.held = None;
            self.timers.clear(Timer::Hold(key));
            self.outputs.push_back(Output::Resume(key));
        }
    }

    /// An endpoint is going to wait for memory: those who keep it for nothing are looked for.
    pub(super) fn wait_for_memory(&mut self, now: Now) {
        self.counters.holds += 1;
        // Those whose receivers have stalled long ago are not waited for again; all ends are looked at, so not too often.
        if !self.budget.is_waited_for() {
            let soonest = self.relieved.map(|last| last + self.rules.times.hold / LOOKS);
            self.timers.set(Timer::Pressure, soonest.map_or(now.mono, |soonest| soonest.max(now.mono)));
        }
    }

    /// Gives memory to those who wait for it, as far as it goes.
    pub(super) fn give_memory(&mut self) {
        while let Some(granted) = self.budget.next() {
            let (Granted::Read(key) | Granted::Bytes(key, _)) = granted;
            if let Some(end) = self.ends.get_mut(key.0) {
                match granted {
                    Granted::Read(_) => end.may_read = true,
                    Granted::Bytes(_, amount) => {
                        end.input += amount;
                        end.granted = end.input;
                    }
                }
            }
            self.resume(key);
        }
    }

    /// Memory is short: whoever has not ended a frame, or has hardly taken anything for a while, gives it back.
    pub(super) fn relieve(&mut self, now: Now) {
        if !self.budget.is_waited_for() {
            return;
        }
        let patience = self.rules.times.hold;
        self.relieved = Some(now.mono);
        // Memory that frames take is others' too: whoever has begun one must end it.
        let is_slow = |end: &End| {
            let since = end.frame_since.map(|at| now.mono.saturating_duration_since(at));
            since.is_some_and(|since| since >= FRAME_PATIENCE * patience) && self.budget.is_short(end.network)
        };
        let slow: Vec<EndKey> =
            self.ends.iter().filter(|(_, end)| is_slow(end)).map(|(key, _)| EndKey(key)).collect();
        for key in slow {
            self.drop_end(now, key, Why::SlowFrame);
        }
        self.timers.set(Timer::Pressure, now.mono + patience / LOOKS);
        let is_behind = |end: &End| {
            let since = now.mono.saturating_duration_since(end.paced.0);
            end.outbox.len() > READ / 16 && since >= patience
        };
        if !self.budget.is_tight() {
            return;
        }
        let stalled: Vec<EndKey> =
            self.ends.iter().filter(|(_, end)| is_behind(end)).map(|(key, _)| EndKey(key)).collect();
        for key in stalled {
            let Some(end) = self.ends.get(key.0) else { continue };
            let waiting: Vec<ConnId> = end
                .connections
                .iter()
                .copied()
                .filter(|conn| {
                    let link = self.connections.get(conn);
                    link.is_some_and(|link| link.side(key).is_some_and(|side| link.lanes[side].waiting > 0))
                })
                .collect();
            for conn in waiting {
                self.close_slow(now, conn);
            }
        }
    }

    /// Says whether an endpoint has taken nothing for so long that it is dropped.
    pub(super) fn is_unread(&self, now: Now, key: EndKey) -> Option<Why> {
        (self.stalled(now.mono, key) >= 2 * self.rules.times.ping).then_some(Why::Unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::{Duplicates, Limits, Rules};
    use crate::gateway::machine::Next;
    use crate::gateway::wire;
    use bytes::BytesMut;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    const QUEUE: usize = 1000;

    /// Hands an endpoint's bytes over and returns what becomes of it.
    fn say(board: &mut Switchboard, now: Now, from: EndKey, bytes: &[u8]) -> Next {
        board.handle_frames(now, from, &mut BytesMut::from(bytes))
    }

    /// Takes all that waits for an endpoint.
    fn take(board: &mut Switchboard, now: Now, to: EndKey) -> Vec<u8> {
        let mut slices = [std::io::IoSlice::new(&[]); 16];
        let count = board.peek(to, &mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        board.handle_written(now, to, bytes.len());
        bytes
    }

    fn dial(board: &mut Switchboard, now: Now, from: EndKey, remote: u32) -> ConnId {
        let mut bytes = BytesMut::new();
        Command::New.emit(&mut bytes);
        say(board, now, from, &bytes);
        let opened = take(board, now, from);
        let conn = ConnId(u32::from_le_bytes(opened[9..].try_into().unwrap()));
        bytes.clear();
        Command::Dial { conn, remote }.emit(&mut bytes);
        say(board, now, from, &bytes);
        take(board, now, from);
        conn
    }

    #[test]
    fn a_server_that_sends_while_its_credit_is_above_zero_is_never_held() {
        let limits = Limits { queue: QUEUE, ..Limits::default() };
        let rules = Rules { limits, ..Rules::default() };
        let mut board = Switchboard::new(rules, ChaCha20Rng::seed_from_u64(1));
        let now = crate::net::time::now();
        let server = board.handle_server(now, 7, true, Duplicates::Newest).unwrap();
        let client = board.handle_client(now, [192, 0, 2, 1].into());
        let conns = [dial(&mut board, now, client, 7), dial(&mut board, now, client, 7)];
        for len in [1, 300, 999, 5000] {
            for conn in conns {
                let mut frame = BytesMut::new();
                wire::head(&mut frame, conn, len);
                frame.resize(wire::HEAD + len, 0);
                let mut credit = i64::try_from(QUEUE).unwrap();
                while credit > 0 {
                    assert!(matches!(say(&mut board, now, server, &frame), Next::Read { .. }), "{len} bytes");
                    credit -= i64::try_from(frame.len()).unwrap();
                }
                take(&mut board, now, client);
            }
        }
        assert_eq!(board.counters().holds, 0);
    }
}
