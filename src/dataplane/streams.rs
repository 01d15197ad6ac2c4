//! A worker's turns with what comes by no datagram socket: clients by TCP, and other workers' parcels. Both are brought into the
//! batch, so that what they make the relay send leaves together.

use super::frames;
use super::tcp_client::{READ_ROOM, Reading};
use super::worker::{Turn, Worker};
use crate::clock::Now;
use crate::net::udp::Intake;
use crate::turn_server::FiveTuple;
use crate::turn_server::machine::{InternalPacket, IpHeader};
use std::ops::Range;

/// Sockets of clients read, and parcels taken, before others have their turn.
const STREAMS_TURN: usize = 64;
const PARCELS_TURN: usize = 8;
/// Bytes that one read may bring: those of a begun frame, and what is new.
const STREAM_ROOM: usize = 2 * READ_ROOM + 4096;

impl Worker {
    /// Reads clients' sockets that have something.
    pub(crate) fn take_streams(&mut self, now: Now, intake: &mut Intake) -> Turn {
        self.depart_and_clear(intake);
        let mut start = 0;
        for _ in 0..STREAMS_TURN {
            let Some((slot, reading)) = self.legs.tcp.read(now.mono, intake, start) else { break };
            let Reading { client, bytes, ended } = reading;
            start = bytes.end;
            let broken = self.hear_stream(now, slot, client, bytes, intake);
            if ended || broken {
                self.end_stream(now, slot, client);
            }
            if intake.stage(start).len() < STREAM_ROOM {
                self.depart(intake);
                start = 0;
            }
        }
        self.depart(intake);
        if self.legs.tcp.has_news() { Turn::More } else { Turn::Empty }
    }

    /// Hears the whole frames of what a socket has brought; says whether it can bring no more.
    fn hear_stream(
        &mut self,
        now: Now,
        slot: usize,
        client: FiveTuple,
        bytes: Range<usize>,
        intake: &Intake,
    ) -> bool {
        let run = frames::run(intake.part(bytes.start, bytes.len()));
        let (mut at, end) = (bytes.start, bytes.start + run.len);
        while at < end && self.legs.tcp.listens(slot, client) {
            let len = frames::first(intake.part(at, end - at));
            self.hear_client(now, client, IpHeader::default(), intake.part(at, len), intake);
            self.carry_out(now, len, intake);
            at += len;
        }
        // What follows the request that has joined it with a peer is the peer's, be it frames or not.
        let joined = !self.legs.tcp.listens(slot, client);
        let rest = intake.part(at, bytes.end - at);
        let kept = self.legs.tcp.keep(now.mono, slot, rest, at > bytes.start);
        (run.broken.is_some() || !kept) && !joined
    }

    /// Forgets clients whose sockets have ended while they were written, or were given up.
    pub(crate) fn end_streams(&mut self, now: Now) {
        while let Some((slot, client)) = self.legs.tcp.take_ended() {
            self.end_stream(now, slot, client);
        }
    }

    fn end_stream(&mut self, now: Now, slot: usize, client: FiveTuple) {
        self.legs.neighbours.gone(client);
        if self.legs.close(now.mono, slot, client) {
            self.relay.handle_client_gone(client);
        }
    }

    /// Hears frames that a task hands over.
    pub(crate) fn hear_run(&mut self, now: Now, client: FiveTuple, mut run: &[u8], intake: &Intake) {
        while !run.is_empty() {
            let (frame, rest) = run.split_at(frames::first(run));
            self.hear_frame(now, client, frame, intake);
            self.carry_out(now, 0, intake);
            run = rest;
        }
    }

    /// Hears a frame of a client who arrives at the worker `host`, and tells that worker when the client is served here.
    pub(crate) fn hear_guest(
        &mut self,
        now: Now,
        (client, host): (FiveTuple, u16),
        bytes: &[u8],
        intake: &Intake,
    ) {
        self.legs.neighbours.welcome(client, host);
        self.hear_frame(now, client, bytes, intake);
        let served = self.relay.served(client);
        let is_served = served.is_some();
        if let Some((user, until)) = served
            && is_request(bytes)
        {
            // Before the answer: what the client sends upon that must be passed on.
            self.legs.neighbours.announce_moved(client, user, until);
        }
        self.carry_out(now, 0, intake);
        self.legs.neighbours.dismiss(client, is_served);
    }

    /// Packs what a client sends to another worker's client.
    pub(crate) fn pass_across(&mut self, packet: &InternalPacket<'_>) {
        let lost = self.crossing.pack(packet);
        self.legs.note_lost_frames(lost);
    }

    /// Takes parcels that other workers have left.
    pub(crate) fn take_parcels(&mut self, now: Now, intake: &mut Intake) -> Turn {
        self.depart_and_clear(intake);
        for _ in 0..PARCELS_TURN {
            let Some(parcel) = self.crossing.take() else { return Turn::Empty };
            let Some(room) = intake.stage(0).get_mut(..parcel.bytes.len()) else {
                self.legs.note_lost_frames(parcel.packets.len());
                self.crossing.give_back(parcel);
                continue;
            };
            room.copy_from_slice(&parcel.bytes);
            for packet in &parcel.packets {
                let payload = intake.part(packet.start, packet.len);
                let forward = self.relay.handle_internal(now, packet.route, packet.marks, payload);
                if let Some(forward) = forward {
                    self.pass_to_client(&forward, intake);
                }
                self.carry_out(now, packet.len, intake);
            }
            self.depart(intake);
            self.crossing.give_back(parcel);
        }
        Turn::More
    }

    /// Says at the end what was handed over.
    pub(crate) fn report(&self) {
        tracing::debug!(packets = self.crossing.sent(), "handed over to other workers");
    }

    /// Ends a pass: what was gathered for streams and for other workers goes off.
    pub(crate) fn end_pass(&mut self, now: Now, intake: &Intake) {
        self.legs.tcp.handle_timeout(now.mono);
        self.legs.flush(now.mono);
        self.end_streams(now);
        self.carry_out(now, 0, intake);
        let lost = self.crossing.flush();
        self.legs.note_lost_frames(lost);
    }
}

/// Says whether a frame is a STUN request, by its class bits.
fn is_request(frame: &[u8]) -> bool {
    matches!(frame, [first, second, ..] if first & 0xC1 == 0 && second & 0x10 == 0)
}
