//! Relayed datagrams on their way out: gathered from one batch, so that those that go the same way leave with one system call.
//!
//! Payloads stay where they were received; headers are written beside them.

use crate::net::udp::{MAX_RUN, MAX_RUN_BYTES, RecvBatch, Route, UdpPort};
use crate::turn_server::RelayId;
use crate::turn_server::wire::Header;
use std::io::{self, IoSlice};

/// Which socket a datagram leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// The worker's listening socket of that index.
    Door(usize),
    /// A relay port's.
    Relay(RelayId),
}

/// One datagram that waits for the end of its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    pub(super) exit: Exit,
    pub(super) route: Route,
    pub(super) header: Header,
    /// Where the payload lies in the batch.
    pub(super) start: usize,
    pub(super) len: usize,
    /// Zero bytes behind the payload.
    pub(super) padding: usize,
}

const ZEROS: [u8; 3] = [0; 3];

impl Departure {
    fn size(&self) -> usize {
        self.header.as_bytes().len() + self.len + self.padding
    }

    fn parts<'a>(&'a self, batch: &'a RecvBatch) -> [IoSlice<'a>; 3] {
        [self.header.as_bytes(), batch.part(self.start, self.len), &ZEROS[..self.padding.min(ZEROS.len())]]
            .map(IoSlice::new)
    }
}

/// Returns how many of the first departures can leave with one call: the same way, equally long but for the last.
fn run_length(departures: &[Departure]) -> usize {
    let Some(first) = departures.first() else { return 0 };
    let size = first.size();
    let most = departures.len().min(MAX_RUN).min((MAX_RUN_BYTES / size.max(1)).max(1));
    let mut count = 1;
    while count < most {
        let next = &departures[count];
        if (next.exit, next.route) != (first.exit, first.route) || next.size() > size || next.size() == 0 {
            break;
        }
        count += 1;
        if next.size() < size {
            break;
        }
    }
    count
}

/// Sends all departures in their order; `socket` names the socket of an exit, `failed` hears of each datagram that was lost.
pub(super) fn send_all<'s>(
    departures: &[Departure],
    batch: &RecvBatch,
    socket: impl Fn(Exit) -> Option<&'s UdpPort>,
    mut failed: impl FnMut(&Departure, &io::Error),
) {
    let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(3 * departures.len().min(MAX_RUN));
    let mut rest = departures;
    while let Some(first) = rest.first() {
        let (run, after) = rest.split_at(run_length(rest));
        rest = after;
        let Some(port) = socket(first.exit) else {
            run.iter().for_each(|lost| failed(lost, &io::ErrorKind::NotConnected.into()));
            continue;
        };
        if run.len() > 1 {
            parts.clear();
            parts.extend(run.iter().flat_map(|departure| departure.parts(batch)));
            match port.send_run(&first.route, &parts, u16::try_from(first.size()).unwrap_or(u16::MAX)) {
                Ok(()) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    run.iter().for_each(|lost| failed(lost, &error));
                    continue;
                }
                // Too large for the path, or the system cannot: each for itself.
                Err(_) => {}
            }
        }
        for departure in run {
            if let Err(error) = port.send_parts(&departure.route, &departure.parts(batch)) {
                failed(departure, &error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departure(exit: Exit, to: &str, len: usize) -> Departure {
        let route = Route::to(to.parse().unwrap());
        Departure { exit, route, header: Header::channel_data(0x4000, 0), start: 0, len, padding: 0 }
    }

    #[test]
    fn what_goes_the_same_way_leaves_together() {
        let (here, there) = ("192.0.2.1:1", "192.0.2.1:2");
        let door = |to, len| departure(Exit::Door(0), to, len);
        for (departures, expected) in [
            (vec![], 0),
            (vec![door(here, 9)], 1),
            (vec![door(here, 9), door(here, 9), door(here, 9)], 3),
            (vec![door(here, 9), door(here, 5), door(here, 5)], 2),
            (vec![door(here, 9), door(here, 10)], 1),
            (vec![door(here, 9), door(there, 9)], 1),
            (vec![door(here, 9), departure(Exit::Relay(0), here, 9)], 1),
            (vec![door(here, 9); 100], MAX_RUN),
            (vec![door(here, 9996); 100], 6),
            (vec![door(here, 65_500); 2], 1),
        ] {
            assert_eq!(run_length(&departures), expected);
        }
    }
}
