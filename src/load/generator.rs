//! The traffic generator: sends as the pacer allows, receives, and counts.

use super::error::LoadError;
use super::outcome::TrafficOutcome;
use super::pacing::{LoadMode, Pace};
use super::packet_stamp::{PacketStamp, STAMP_LEN};
use super::packets::Packets;
use super::process::{Process, thread_cpu_ns};
use super::socket_set::SocketSet;
use super::{LoadProgress, LoadStage, LoadTimes, RunControl};
use crate::net::time;
use crate::stun::{Class, Message};
use std::time::{Duration, Instant};

/// How long the end waits for late packets.
const LATE_PACKETS: Duration = Duration::from_secs(1);
/// Shorter waits are busy waits: the timer of `poll` has a resolution of 1 ms.
const MIN_SLEEP: Duration = Duration::from_micros(1500);

/// What is sent, and which arrival is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrafficKind {
    /// Binding requests; each answer arrives at the socket that sent it.
    Answers,
    /// Payloads, each to the other endpoint of its flow: 0 and 1, 2 and 3, and so on.
    OneWay,
    /// The same, returned by the receiver.
    Echo,
}

/// The plan of one run.
#[derive(Debug, Clone)]
pub(super) struct TrafficPlan {
    pub(super) kind: TrafficKind,
    /// The endpoints that send.
    pub(super) senders: Vec<usize>,
    pub(super) mode: LoadMode,
    pub(super) burst: u32,
    /// Bytes of each payload.
    pub(super) size: usize,
    pub(super) times: LoadTimes,
    pub(super) process: Option<Process>,
    /// Distinguishes this run's packets from those of an earlier run.
    pub(super) tag: u16,
}

struct Tally<'a> {
    plan: &'a TrafficPlan,
    epoch: Instant,
    pace: Pace,
    from: u64,
    to: u64,
    /// All arrivals, counted or not.
    arrivals: u64,
    outcome: TrafficOutcome,
}

/// CPU time used by the server and by this process until now, in ns.
fn used(plan: &TrafficPlan) -> Result<(Option<u64>, u64), LoadError> {
    let watched = |process: &Process| {
        process.cpu_ns().map_err(|source| LoadError::Process { pid: process.pid(), source })
    };
    let server = plan.process.as_ref().map(watched).transpose()?;
    Ok((server, Process::own().cpu_ns()?))
}

/// Runs a load to its end.
pub(super) fn run(
    socket_set: &mut SocketSet,
    plan: &TrafficPlan,
    control: &mut RunControl<'_>,
) -> Result<TrafficOutcome, LoadError> {
    let LoadTimes { warm_up, seconds } = plan.times;
    let mut tally = Tally {
        plan,
        epoch: time::mono(),
        pace: Pace::new(plan.mode, plan.burst),
        from: u64::MAX,
        to: u64::MAX,
        arrivals: 0,
        outcome: TrafficOutcome::default(),
    };
    // CPU time of busy waiting.
    let (mut busy_wait, mut idle_since) = (0, None);
    let mut sender = PacketWriter { next: 0, number: 0, packets: Packets::default() };
    let end = ns(warm_up + seconds);
    let mut used_before = (None, 0);
    let mut left_out_before = 0;
    let mut next_line = ns(Duration::from_secs(1));
    loop {
        let now = tally.now();
        if tally.from == u64::MAX && now >= ns(warm_up) {
            used_before = used(plan)?;
            left_out_before = tally.pace.left_out();
            tally.from = tally.now();
        }
        if now >= end || control.is_stopped() {
            break;
        }
        let due = tally.pace.due(now);
        let sent = sender.send(socket_set, &mut tally, due)?;
        let wait = if sent > 0 { Duration::ZERO } else { tally.pace.wait(now) };
        let wait = if wait < MIN_SLEEP { Duration::ZERO } else { wait - Duration::from_millis(1) };
        let seen = tally.arrivals;
        socket_set.poll_once(wait.min(Duration::from_millis(100)), &mut |endpoint, at, payload| {
            tally.arrived(endpoint, at, payload)
        })?;
        if wait.is_zero() && sent == 0 && tally.arrivals == seen && tally.from != u64::MAX {
            let used = thread_cpu_ns();
            busy_wait += idle_since.map_or(0, |since| used.saturating_sub(since));
            idle_since = Some(used);
        } else {
            idle_since = None;
        }
        socket_set.check_client_events()?;
        if now >= next_line {
            next_line += ns(Duration::from_secs(1));
            (control.on_stage)(LoadStage::Traffic(tally.progress(now, end)));
        }
    }
    if tally.from == u64::MAX {
        return Err(LoadError::Interrupted);
    }
    tally.to = tally.now();
    let used_after = used(plan)?;
    let deadline = time::mono() + LATE_PACKETS;
    while tally.outcome.received < tally.outcome.sent && time::mono() < deadline {
        socket_set.poll_once(Duration::from_millis(10), &mut |endpoint, at, payload| {
            tally.arrived(endpoint, at, payload)
        })?;
    }
    let mut outcome = tally.outcome;
    outcome.elapsed = Duration::from_nanos(tally.to - tally.from);
    outcome.left_out = tally.pace.left_out() - left_out_before;
    outcome.server_cpu =
        used_after.0.zip(used_before.0).map(|(a, b)| Duration::from_nanos(a.saturating_sub(b)));
    outcome.own_cpu =
        Duration::from_nanos(used_after.1.saturating_sub(used_before.1).saturating_sub(busy_wait));
    outcome.segmentation = socket_set.segmentation.0;
    Ok(outcome)
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

struct PacketWriter {
    next: usize,
    number: u32,
    packets: Packets,
}

impl PacketWriter {
    /// Sends `due` packets, one burst per sender in turn; returns how many were sent.
    fn send(
        &mut self,
        socket_set: &mut SocketSet,
        tally: &mut Tally<'_>,
        due: u64,
    ) -> Result<u64, LoadError> {
        let plan = tally.plan;
        let mut left = due;
        let mut sent = 0;
        while left > 0 {
            let endpoint = plan.senders[self.next];
            self.next = (self.next + 1) % plan.senders.len();
            let count = if plan.senders.len() == 1 { left } else { left.min(plan.burst.into()) };
            let at = tally.now();
            self.write(socket_set, plan, endpoint, count, at);
            let taken = socket_set.send(&self.packets)?;
            tally.pace.sent(at, taken);
            tally.pace.held_back(count - taken);
            if at >= tally.from {
                tally.outcome.sent += taken;
                tally.outcome.held_back += count - taken;
            }
            sent += taken;
            left -= count;
        }
        Ok(sent)
    }

    fn write(&mut self, socket_set: &SocketSet, plan: &TrafficPlan, endpoint: usize, count: u64, at: u64) {
        let (head, padding) = socket_set.head(endpoint);
        let stamp_at = if plan.kind == TrafficKind::Answers { head.len() - STAMP_LEN } else { head.len() };
        self.packets.clear();
        for _ in 0..count {
            let number = match plan.kind {
                TrafficKind::Answers => self.number,
                _ => u32::try_from(endpoint).unwrap_or(u32::MAX),
            };
            self.number = self.number.wrapping_add(1);
            let stamp = PacketStamp { tag: plan.tag, number, at }.bytes();
            let packet = self.packets.push(endpoint, [head, &[]], plan.size + padding);
            packet[stamp_at..][..STAMP_LEN].copy_from_slice(&stamp);
        }
    }
}

impl Tally<'_> {
    fn now(&self) -> u64 {
        self.ns_at(time::mono())
    }

    fn ns_at(&self, at: Instant) -> u64 {
        ns(at.saturating_duration_since(self.epoch))
    }

    /// Counts an arrival; returns whether it is to be returned.
    fn arrived(&mut self, endpoint: usize, at: Instant, payload: &[u8]) -> bool {
        self.arrivals += 1;
        let Some(stamp) = self.read(payload).filter(|stamp| stamp.tag == self.plan.tag) else { return false };
        let sender = stamp.number as usize;
        let is_returned = self.plan.kind == TrafficKind::Echo && sender == endpoint ^ 1;
        let expected = match self.plan.kind {
            TrafficKind::Answers => true,
            TrafficKind::OneWay => sender == endpoint ^ 1,
            TrafficKind::Echo => sender & !1 == endpoint & !1,
        };
        if !expected || self.plan.kind != TrafficKind::Answers && payload.len() != self.plan.size {
            self.outcome.misdelivered += 1;
            return false;
        }
        let now = self.ns_at(at);
        if (self.from..self.to).contains(&now) {
            self.outcome.delivered += 1;
        }
        if !is_returned {
            self.pace.arrived(stamp.at);
            if (self.from..self.to).contains(&stamp.at) {
                self.outcome.received += 1;
                self.outcome.latency.record(now.saturating_sub(stamp.at));
            }
        }
        is_returned
    }

    fn read(&mut self, payload: &[u8]) -> Option<PacketStamp> {
        if self.plan.kind != TrafficKind::Answers {
            return PacketStamp::read(payload);
        }
        let message = Message::parse(payload).ok()?;
        if message.class() == Class::Error {
            self.outcome.refused += 1;
            return None;
        }
        PacketStamp::read(&message.transaction().0[4..])
    }

    fn progress(&self, now: u64, end: u64) -> LoadProgress {
        let TrafficOutcome { sent, received, .. } = self.outcome;
        LoadProgress {
            elapsed: Duration::from_nanos(now),
            whole: Duration::from_nanos(end),
            warming_up: self.from == u64::MAX,
            sent,
            received,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: u16 = 9;

    fn plan(kind: TrafficKind) -> TrafficPlan {
        let second = Duration::from_secs(1);
        TrafficPlan {
            kind,
            senders: vec![0],
            mode: LoadMode::Window(4),
            burst: 1,
            size: 20,
            times: LoadTimes { warm_up: second, seconds: second },
            process: None,
            tag: TAG,
        }
    }

    fn tally(plan: &TrafficPlan) -> Tally<'_> {
        let (epoch, pace) = (time::mono(), Pace::new(plan.mode, plan.burst));
        let mut tally =
            Tally { plan, epoch, pace, from: 100, to: 200, arrivals: 0, outcome: TrafficOutcome::default() };
        tally.pace.sent(100, 4);
        tally
    }

    fn payload(tag: u16, number: u32, at: u64) -> Vec<u8> {
        let mut payload = PacketStamp { tag, number, at }.bytes().to_vec();
        payload.resize(20, 0);
        payload
    }

    #[test]
    fn a_payload_counts_at_its_receiver_and_as_misdelivered_elsewhere() {
        let plan = plan(TrafficKind::OneWay);
        let mut tally = tally(&plan);
        let at = tally.epoch + Duration::from_nanos(150);
        tally.arrived(1, at, &payload(TAG, 0, 110));
        tally.arrived(0, at, &payload(TAG, 1, 110));
        assert_eq!((tally.outcome.received, tally.outcome.misdelivered), (2, 0));
        assert_eq!(tally.outcome.latency.longest(), Duration::from_nanos(40));
        tally.arrived(3, at, &payload(TAG, 0, 110));
        tally.arrived(0, at, &payload(TAG, 0, 110));
        tally.arrived(1, at, &payload(TAG, 0, 110)[..19]);
        assert_eq!((tally.outcome.received, tally.outcome.misdelivered), (2, 3));
        tally.arrived(1, at, &payload(TAG + 1, 0, 110));
        tally.arrived(1, at, &[1, 2, 3]);
        assert_eq!((tally.outcome.received, tally.outcome.misdelivered), (2, 3));
    }

    #[test]
    fn a_packet_sent_outside_the_measurement_is_delivered_but_not_received() {
        let plan = plan(TrafficKind::OneWay);
        let mut tally = tally(&plan);
        let inside = tally.epoch + Duration::from_nanos(150);
        tally.arrived(1, inside, &payload(TAG, 0, 99));
        tally.arrived(1, inside + Duration::from_secs(1), &payload(TAG, 0, 199));
        tally.arrived(1, inside + Duration::from_secs(1), &payload(TAG, 0, 200));
        assert_eq!((tally.outcome.received, tally.outcome.delivered), (1, 1));
    }

    #[test]
    fn an_echo_is_delivered_twice_and_received_once() {
        let plan = plan(TrafficKind::Echo);
        let mut tally = tally(&plan);
        let at = tally.epoch + Duration::from_nanos(150);
        assert!(tally.arrived(1, at, &payload(TAG, 0, 110)));
        assert!(!tally.arrived(0, at, &payload(TAG, 0, 110)));
        let TrafficOutcome { received, delivered, misdelivered, .. } = tally.outcome;
        assert_eq!((received, delivered, misdelivered), (1, 2, 0));
    }

    #[test]
    fn error_responses_are_no_answers() {
        let plan = plan(TrafficKind::Answers);
        let mut tally = tally(&plan);
        let mut random = PacketStamp { tag: TAG, number: 5, at: 110 }.bytes();
        let answer = |class, random| {
            let id = crate::stun::TransactionId::new(random);
            crate::stun::Builder::new(class, crate::stun::Method::BINDING, id).finish()
        };
        let at = tally.epoch + Duration::from_nanos(150);
        tally.arrived(0, at, &answer(Class::Error, random));
        tally.arrived(0, at, &answer(Class::Success, random));
        random[0] ^= 1;
        tally.arrived(0, at, &answer(Class::Success, random));
        assert_eq!((tally.outcome.received, tally.outcome.refused), (1, 1));
    }
}
