use super::*;

const PACKET: u64 = 1400;
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// A path whose round trips are given; each acknowledges a hundred packets.
struct Path {
    now: Instant,
    controller: PathController,
}

impl Path {
    fn new() -> Self {
        let now = crate::net::time::mono();
        let config = Arc::new(CongestionConfig(Arc::default()));
        let controller = config.build(now, 1400).into_any().downcast::<PathController>().unwrap();
        Self { now, controller: *controller }
    }

    fn rounds(&mut self, count: u32, round_trip: Duration) {
        for _ in 0..count {
            self.now += round_trip;
            for _ in 0..100 {
                self.controller.loss.handle_acknowledged(PACKET, self.controller.cubic.window());
            }
            self.controller.queue.handle_round_trip(self.now, round_trip, round_trip);
        }
    }

    /// Loses packets; returns whether the window became smaller.
    fn loses(&mut self, packets: u64) -> bool {
        let before = self.controller.window();
        self.controller.on_congestion_event(self.now, self.now, false, packets * PACKET);
        self.controller.window() < before
    }
}

#[test]
fn one_lost_packet_in_a_hundred_is_no_congestion() {
    let mut path = Path::new();
    for _ in 0..1000 {
        path.rounds(1, ROUND_TRIP);
        assert!(!path.loses(1));
    }
}

#[test]
fn more_loss_is_congestion() {
    for packets in [4, 10] {
        let mut path = Path::new();
        let first = (0..20).find(|_| {
            path.rounds(1, ROUND_TRIP);
            path.loses(packets)
        });
        assert!(first.is_some(), "{packets} of 100");
    }
    assert!(Path::new().loses(3), "the first packets");
}

#[test]
fn loss_with_a_standing_queue_is_congestion() {
    let mut path = Path::new();
    path.rounds(20, ROUND_TRIP);
    assert!(!path.loses(1));
    path.rounds(3, ROUND_TRIP + Duration::from_millis(10));
    assert!(!path.loses(1), "as much as systems delay packets");
    path.rounds(3, ROUND_TRIP * 2);
    assert!(path.loses(1));
    // A longer path is no queue for ever.
    path.rounds(120, ROUND_TRIP * 2);
    assert!(!path.loses(1));
}

#[test]
fn one_late_packet_is_no_queue() {
    let mut path = Path::new();
    path.rounds(20, ROUND_TRIP);
    for _ in 0..4 {
        path.controller.queue.handle_round_trip(path.now, ROUND_TRIP * 3, ROUND_TRIP);
        path.controller.queue.handle_round_trip(path.now, ROUND_TRIP, ROUND_TRIP);
    }
    assert!(!path.loses(1));
}

#[test]
fn marked_packets_and_persistent_congestion_are_congestion() {
    let mut path = Path::new();
    path.rounds(20, ROUND_TRIP);
    assert!(path.loses(0), "the network has marked a packet");
    let mut path = Path::new();
    path.rounds(20, ROUND_TRIP);
    path.controller.on_congestion_event(path.now, path.now, true, PACKET);
    assert_eq!(path.controller.window(), 2 * 1400);
}

#[test]
fn an_allowance_is_spent_by_what_is_sent() {
    let Path { now, mut controller } = Path::new();
    let window = controller.window();
    controller.on_sent(now, 10 * window, 1);
    assert_eq!(controller.window(), window);
    controller.allowance.allow(PACKET + 1);
    controller.allowance.allow(PACKET);
    assert_eq!(controller.window(), 10 * window + PACKET + 1);
    controller.on_sent(now, PACKET, 2);
    assert_eq!(controller.window(), 10 * window + PACKET + 1, "room for one byte");
    controller.on_sent(now, PACKET, 3);
    assert_eq!(controller.window(), window);
    controller.on_end_acks(now, 0, false, Some(3));
    controller.allowance.allow(PACKET);
    assert_eq!(controller.window(), window, "it is not full");
}
