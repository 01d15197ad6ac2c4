//! Ports that EVEN-PORT reserved for a second allocation, by token
//! ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2)).

use super::allocation_quota::QuotaPermit;
use super::ports::PortLease;
use crate::limits::Limit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a port stays reserved.
const LIFETIME: Duration = Duration::from_secs(30);
/// Most reservations at a time; beyond it EVEN-PORT gets 508.
const MAX_RESERVATIONS: usize = 1024;

/// The value of RESERVATION-TOKEN.
pub(super) type ReservationToken = [u8; 8];

/// The reserved ports of all workers: the second Allocate may reach another worker than the first.
#[derive(Debug, Default)]
pub(super) struct Reservations(Mutex<HashMap<ReservationToken, Reservation>>);

/// A reserved port, which counts towards its user's quota.
#[derive(Debug)]
pub(super) struct ReservedPort {
    pub(super) lease: PortLease,
    pub(super) permit: QuotaPermit,
}

#[derive(Debug)]
struct Reservation {
    user: Arc<str>,
    port: ReservedPort,
    expires: Instant,
}

impl Reservations {
    /// Reserves a port for `user` under `token`; `false`, and the port is released, when there are too many.
    pub(super) fn insert(
        &self,
        now: Instant,
        token: ReservationToken,
        user: Arc<str>,
        port: ReservedPort,
    ) -> bool {
        self.expire(now);
        let mut reservations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = reservations.len() < MAX_RESERVATIONS;
        if has_room {
            reservations.insert(token, Reservation { user, port, expires: now + LIFETIME });
        } else {
            Limit::Reservations.reached(MAX_RESERVATIONS);
        }
        has_room
    }

    /// Removes and returns the port that `user` reserved under `token`.
    pub(super) fn take(&self, now: Instant, token: &[u8], user: &str) -> Option<ReservedPort> {
        let token: ReservationToken = token.try_into().ok()?;
        self.expire(now);
        let mut reservations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reservations.get(&token)?.user.as_ref() != user {
            return None;
        }
        reservations.remove(&token).map(|reservation| reservation.port)
    }

    /// Releases expired reservations; returns the next expiry.
    pub(super) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut reservations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reservations.retain(|_, reservation| now < reservation.expires);
        reservations.values().map(|reservation| reservation.expires).min()
    }
}
