//! CIDR prefixes as people write them: an address alone is the prefix of its whole length.

use ipnet::IpNet;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;

/// `ADDRESS/LENGTH`, or an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix(IpNet);

impl Prefix {
    /// Takes the prefixes out of a list.
    pub(super) fn all(list: Vec<Self>) -> Vec<IpNet> {
        list.into_iter().map(|prefix| prefix.0).collect()
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        prefix.map(|prefix| Self(prefix.trunc())).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no prefix: write an address, or ADDRESS/LENGTH such as 10.0.0.0/8"
            ))
        })
    }
}
