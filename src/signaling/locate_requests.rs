//! The handlers of t=61 and 62: a tag gets a locator, and others resolve it.

use super::bus::{Destination, ForwardedLocate, HubPayload};
use super::machine::{Hub, RequestOrigin};
use super::registry::Registration;
use super::wire::{ErrorCode, MessageType, ResponseBody, Tag};
use crate::limits::Limit;

impl Hub {
    /// Handles t=61: gives the client's tag a new locator, or takes it away.
    pub(super) fn handle_locator(
        &mut self,
        origin: RequestOrigin,
        tag: &Tag,
        release: bool,
    ) -> Result<ResponseBody, ErrorCode> {
        let name = self.owner(origin, tag)?.name;
        if release {
            self.locators.release(name);
            return Ok(ResponseBody::Locator { locator: None, ttl: None });
        }
        let lifetime = self.config.times.locator;
        let place = (self.nodes.own(), self.nodes.count());
        let locator = self.locators.assign(name, origin.now.mono + lifetime, place, &mut self.rng);
        let locator = Some(locator.ok_or(ErrorCode::TooMany)?);
        Ok(ResponseBody::Locator { locator, ttl: u32::try_from(lifetime.as_secs()).ok() })
    }

    /// Handles t=62 of a client of this hub. The hub that keeps the locator answers.
    pub(super) fn handle_locate(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        tag: &Tag,
        locator: u32,
    ) -> Result<(), ErrorCode> {
        let realm = self.owner(origin, tag)?.realm;
        if !self.locates.try_take(&origin.network, origin.now.mono, 1) {
            Limit::SignalingPerLocate.reached(self.config.limits.per_locate.per_second());
            return Err(ErrorCode::TooMany);
        }
        let origin = RequestOrigin { max_len: self.max_len(origin), ..origin };
        let (to, locate) = (self.nodes.of_locator(locator), ForwardedLocate { origin, mid, locator, realm });
        if to == self.nodes.own() {
            self.handle_forwarded_locate(locate);
        } else {
            self.publish(Destination::Node(to), HubPayload::Locate(Box::new(locate)));
        }
        Ok(())
    }

    /// Handles t=62 for a locator of this hub.
    pub(super) fn handle_forwarded_locate(&mut self, locate: ForwardedLocate) {
        let ForwardedLocate { origin, mid, locator, realm } = locate;
        let client = self.locators.resolve(locator).and_then(|name| self.registry.by_tag_id(name));
        let found = client.filter(|client| client.realm == realm).and_then(|client| client.name.tag());
        let answer = found.map(|tag| ResponseBody::Located { tag }).ok_or(ErrorCode::NotOnline);
        self.answer(origin, MessageType::Locate, mid, answer);
    }

    /// Returns the registration of a client's own tag.
    fn owner(&mut self, origin: RequestOrigin, tag: &Tag) -> Result<&Registration, ErrorCode> {
        self.registry.touch(origin.now.mono, tag, origin.route.addr).ok_or(ErrorCode::UnknownTag)
    }
}
