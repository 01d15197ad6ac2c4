//! Permissions and channels of an allocation, and when they are renewed.

use super::error::TurnRequest;
use crate::turn_wire::CHANNELS;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Permissions last 300 s, channels 600 s; binding a channel renews the permission.
const RENEWAL: Duration = Duration::from_secs(200);
/// After a renewal without a response.
const RETRY: Duration = Duration::from_secs(5);
/// RFC 8656 section 12: numbers from 0x5000 on are reserved.
const CHANNEL_COUNT: usize = 0x1000;

/// The client has [`TurnClientConfig::max_peers`](super::TurnClientConfig::max_peers) permissions or channels, or has used every channel
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many peers of one allocation")]
pub struct TooManyPeers;

/// One permission or channel.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    is_installed: bool,
    /// `None` while its request is waiting or in flight.
    renew_at: Option<Instant>,
}

/// The peers of an allocation.
#[derive(Debug, Default)]
pub(super) struct Peers {
    permissions: BTreeMap<IpAddr, Entry>,
    channels: BTreeMap<SocketAddr, (u16, Entry)>,
    /// The peers of all channel numbers that were used: a number is not bound to another peer (section 12).
    by_number: Vec<SocketAddr>,
}

impl Peers {
    /// Adds a permission; `false` if it is there already.
    pub(super) fn add_permission(&mut self, peer: IpAddr, most: usize) -> Result<bool, TooManyPeers> {
        if self.permissions.contains_key(&peer) {
            return Ok(false);
        }
        if self.permissions.len() >= most {
            return Err(TooManyPeers);
        }
        self.permissions.insert(peer, Entry::default());
        Ok(true)
    }

    /// Adds a channel; `None` if it is there already.
    pub(super) fn add_channel(&mut self, peer: SocketAddr, most: usize) -> Result<Option<u16>, TooManyPeers> {
        if self.channels.contains_key(&peer) {
            return Ok(None);
        }
        let index = self.by_number.iter().position(|known| *known == peer).unwrap_or(self.by_number.len());
        if self.channels.len() >= most || index >= CHANNEL_COUNT {
            return Err(TooManyPeers);
        }
        if index == self.by_number.len() {
            self.by_number.push(peer);
        }
        let number = CHANNELS.start() + index as u16;
        self.channels.insert(peer, (number, Entry::default()));
        Ok(Some(number))
    }

    /// Forgets a peer's channel, and the permission of its address if no other channel needs it. Both expire at the server.
    pub(super) fn remove(&mut self, peer: SocketAddr) {
        self.channels.remove(&peer);
        if !self.channels.keys().any(|other| other.ip() == peer.ip()) {
            self.permissions.remove(&peer.ip());
        }
    }

    pub(super) fn channel_number(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.get(&peer).map(|(number, _)| *number)
    }

    /// Returns the number of the channel if the server has bound it.
    pub(super) fn bound_channel(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.get(&peer).filter(|(_, entry)| entry.is_installed).map(|(number, _)| *number)
    }

    /// Returns whether the server relays to this peer.
    pub(super) fn is_permitted(&self, peer: IpAddr) -> bool {
        self.permissions.get(&peer).is_some_and(|entry| entry.is_installed)
            || self.channels.iter().any(|(channel, (_, entry))| channel.ip() == peer && entry.is_installed)
    }

    /// Returns the requests that permit an address.
    pub(super) fn requests_for(&self, peer: IpAddr) -> impl Iterator<Item = TurnRequest> {
        let permission = self.permissions.keys().filter(move |ip| **ip == peer);
        let channels = self.channels.keys().filter(move |channel| channel.ip() == peer);
        permission
            .map(|ip| TurnRequest::CreatePermission(*ip))
            .chain(channels.map(|channel| TurnRequest::ChannelBind(*channel)))
    }

    /// Returns whether a permission or a channel for this address was requested.
    pub(super) fn is_wanted(&self, peer: IpAddr) -> bool {
        self.permissions.contains_key(&peer) || self.channels.keys().any(|channel| channel.ip() == peer)
    }

    /// Returns the peer of a channel number.
    pub(super) fn peer_of(&self, number: u16) -> Option<SocketAddr> {
        let index = usize::from(number.checked_sub(*CHANNELS.start())?);
        self.by_number.get(index).copied()
    }

    /// Handles the success of a request.
    pub(super) fn on_installed(&mut self, now: Instant, request: TurnRequest) {
        let renewed = Entry { is_installed: true, renew_at: Some(now + RENEWAL) };
        if let Some(entry) = self.entry(request) {
            *entry = renewed;
        }
    }

    /// Handles a request without a response: it is repeated later.
    pub(super) fn on_timed_out(&mut self, now: Instant, request: TurnRequest) {
        if let Some(entry) = self.entry(request) {
            entry.renew_at = Some(now + RETRY);
        }
    }

    /// Handles the refusal of a request.
    pub(super) fn on_refused(&mut self, request: TurnRequest) {
        match request {
            TurnRequest::CreatePermission(peer) => drop(self.permissions.remove(&peer)),
            TurnRequest::ChannelBind(peer) => drop(self.channels.remove(&peer)),
            _ => {}
        }
    }

    fn entry(&mut self, request: TurnRequest) -> Option<&mut Entry> {
        match request {
            TurnRequest::CreatePermission(peer) => self.permissions.get_mut(&peer),
            TurnRequest::ChannelBind(peer) => self.channels.get_mut(&peer).map(|(_, entry)| entry),
            _ => None,
        }
    }

    /// Returns the requests that install everything.
    pub(super) fn all(&self) -> Vec<TurnRequest> {
        let permissions = self.permissions.keys().map(|peer| TurnRequest::CreatePermission(*peer));
        permissions.chain(self.channels.keys().map(|peer| TurnRequest::ChannelBind(*peer))).collect()
    }

    /// Returns when the next renewal is due.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        let permissions = self.permissions.values();
        permissions
            .chain(self.channels.values().map(|(_, entry)| entry))
            .filter_map(|entry| entry.renew_at)
            .min()
    }

    /// Takes the renewals that are due.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<TurnRequest> {
        let is_due = |entry: &mut Entry| entry.renew_at.take_if(|at| *at <= now).is_some();
        let mut due = Vec::new();
        for (peer, entry) in &mut self.permissions {
            due.extend(is_due(entry).then_some(TurnRequest::CreatePermission(*peer)));
        }
        for (peer, (_, entry)) in &mut self.channels {
            due.extend(is_due(entry).then_some(TurnRequest::ChannelBind(*peer)));
        }
        due
    }
}
