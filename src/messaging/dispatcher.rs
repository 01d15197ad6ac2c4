//! The dispatcher (S4-3): which TCP server an id connects to, by consistent hashing. Pure.
//!
//! The same id always gets the same server while that is healthy, so that two clients of one id meet there and the older one is closed
//! (S4-15).

use super::commands::{Code, ResultBody};
use ring::digest;
use serde::Serialize;
use std::collections::BTreeMap;

/// Points of one server on the ring.
const VIRTUAL_NODES: usize = 150;

/// The address of a TCP server, as clients are told it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServerHost {
    /// An IP address or a host name.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}

/// The servers on the ring.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ring {
    servers: Vec<ServerHost>,
    /// Indices of servers by their points.
    points: BTreeMap<u64, usize>,
}

/// The body of an answer with a server: flat (S4-A3).
#[derive(Debug, Serialize)]
struct Found<'a> {
    #[serde(flatten)]
    response: ResultBody<'a>,
    ip: &'a str,
    port: u16,
}

fn point(text: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |point, byte| point << 8 | u64::from(*byte))
}

impl Ring {
    /// Makes a ring of these servers.
    #[must_use]
    pub(crate) fn new(servers: Vec<ServerHost>) -> Self {
        let mut points = BTreeMap::new();
        for (index, server) in servers.iter().enumerate() {
            for node in 0..VIRTUAL_NODES {
                points.insert(point(&format!("{}:{}#{node}", server.host, server.port)), index);
            }
        }
        Self { servers, points }
    }

    /// Returns the servers in the order in which they were given.
    #[must_use]
    pub(crate) fn servers(&self) -> &[ServerHost] {
        &self.servers
    }

    /// Returns the first healthy server after the id's point. `is_healthy` takes the index of a server.
    #[must_use]
    pub(crate) fn server(&self, id: &str, is_healthy: impl Fn(usize) -> bool) -> Option<&ServerHost> {
        let start = point(id);
        let after = self.points.range(start..).chain(self.points.range(..start));
        let mut indices = after.map(|(_, index)| *index);
        self.servers.get(indices.find(|index| is_healthy(*index))?)
    }

    /// Returns the JSON for an id.
    #[must_use]
    pub(crate) fn answer(&self, id: Option<&str>, is_healthy: impl Fn(usize) -> bool) -> String {
        let response = |code, msg| ResultBody { code, msg };
        let text = match id.filter(|id| !id.is_empty()) {
            None => serde_json::to_string(&response(Code::Exception, "id is null")),
            Some(id) => match self.server(id, is_healthy) {
                None => serde_json::to_string(&response(Code::NoServer, "no available server")),
                Some(server) => {
                    let response = response(Code::Ok, "ok");
                    serde_json::to_string(&Found { response, ip: &server.host, port: server.port })
                }
            },
        };
        // Texts and numbers can be written.
        text.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(count: u16) -> Ring {
        Ring::new(
            (0..count).map(|index| ServerHost { host: "192.0.2.1".into(), port: 8888 + index }).collect(),
        )
    }

    #[test]
    fn answers_are_flat_json() {
        let one = ring(1);
        assert_eq!(
            one.answer(Some("a"), |_| true),
            r#"{"code":100,"msg":"ok","ip":"192.0.2.1","port":8888}"#
        );
        assert_eq!(one.answer(None, |_| true), r#"{"code":200,"msg":"id is null"}"#);
        assert_eq!(one.answer(Some(""), |_| true), r#"{"code":200,"msg":"id is null"}"#);
        let none = r#"{"code":1000,"msg":"no available server"}"#;
        assert_eq!(one.answer(Some("a"), |_| false), none);
        assert_eq!(ring(0).answer(Some("a"), |_| true), none);
    }

    #[test]
    fn an_id_stays_at_its_server_and_moves_only_when_that_fails() {
        let ring = ring(4);
        let ids: Vec<_> = (0..4000).map(|id| format!("id{id}")).collect();
        let mut counts = [0; 4];
        for id in &ids {
            let server = ring.server(id, |_| true).unwrap();
            let index = usize::from(server.port - 8888);
            counts[index] += 1;
            assert_eq!(ring.server(id, |other| other != (index + 1) % 4), Some(server));
            assert_ne!(ring.server(id, |other| other != index), Some(server));
        }
        assert!(counts.iter().all(|count| (600..1400).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_further_server_takes_ids_only_for_itself() {
        let (before, after) = (ring(3), ring(4));
        let moved = (0..4000).map(|id| format!("id{id}")).filter(|id| {
            let (before, after) = (before.server(id, |_| true).unwrap(), after.server(id, |_| true).unwrap());
            assert!(before == after || after.port == 8891);
            before != after
        });
        assert!((600..1400).contains(&moved.count()));
    }
}
