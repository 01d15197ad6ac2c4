//! Ports that EVEN-PORT set aside for a second allocation, named by a token
//! ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2)).

use super::allocation_quota::QuotaPermit;
use super::ports::PortLease;
use crate::limits::Limit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a reserved port waits for its Allocate.
const LIFETIME: Duration = Duration::from_secs(30);
/// Reservations at one time; beyond it EVEN-PORT gets 508.
const MAX_RESERVATIONS: usize = 1024;

/// What RESERVATION-TOKEN carries.
pub(super) type ReservationToken = [u8; 8];

/// ReservedPort ports of all workers: the second Allocate may reach another one than the first.
#[derive(Debug, Default)]
pub struct Reservations(Mutex<HashMap<ReservationToken, Reservation>>);

/// A port that waits for its Allocate, which is in its user's quota meanwhile.
#[derive(Debug)]
pub(super) struct ReservedPort {
    pub(super) lease: PortLease,
    pub(super) permit: QuotaPermit,
}

#[derive(Debug)]
struct Reservation {
    user: Arc<str>,
    reserved: ReservedPort,
    expires: Instant,
}

impl Reservations {
    /// Keeps a port for `user` under `token`; `false`, and the port returns, when there are too many.
    pub(super) fn keep(
        &self,
        now: Instant,
        token: ReservationToken,
        user: Arc<str>,
        reserved: ReservedPort,
    ) -> bool {
        self.expire(now);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = kept.len() < MAX_RESERVATIONS;
        if room {
            kept.insert(token, Reservation { user, reserved, expires: now + LIFETIME });
        } else {
            Limit::Reservations.reached(MAX_RESERVATIONS);
        }
        room
    }

    /// Hands out the port that `user` reserved under `token`, once.
    pub(super) fn claim(&self, now: Instant, token: &[u8], user: &str) -> Option<ReservedPort> {
        let token: ReservationToken = token.try_into().ok()?;
        self.expire(now);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(&token)?.user.as_ref() != user {
            return None;
        }
        kept.remove(&token).map(|reservation| reservation.reserved)
    }

    /// Gives back the ports that nobody has claimed in time; returns when the next one's time is over.
    pub(super) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, reservation| now < reservation.expires);
        kept.values().map(|reservation| reservation.expires).min()
    }
}
