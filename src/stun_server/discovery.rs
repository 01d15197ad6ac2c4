//! NAT behaviour discovery: [RFC 5780](https://www.rfc-editor.org/rfc/rfc5780), over UDP.
//!
//! Complete with two addresses of a family; with one address, only what needs a second port. Attributes about the server are left out
//! where clients cannot use them, which keeps Binding responses small.

use super::binding::{self, KNOWN};
use crate::stun::{Attributes, Builder, Message, attr};
use std::net::{IpAddr, SocketAddr};

/// The longest PADDING of a response: the usual MTU, so that the response is fragmented
/// ([RFC 5780 section 7.6](https://www.rfc-editor.org/rfc/rfc5780#section-7.6)).
const MAX_PADDING: usize = 1500;
const CHANGE_IP: u32 = 0x4;
const CHANGE_PORT: u32 = 0x2;

/// An address of the server, and the address that clients receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddress {
    /// The address on this host.
    pub local: IpAddr,
    /// The public address; differs behind a 1:1 NAT.
    pub public: IpAddr,
}

/// A response and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingResponse {
    /// A whole STUN message.
    pub bytes: Vec<u8>,
    /// The local address to send it from.
    pub from: SocketAddr,
    /// The destination: the client's IP address, with its port or RESPONSE-PORT.
    pub to: SocketAddr,
}

/// NAT behaviour discovery on the server's two ports and, if it has them, pairs of addresses.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    ports: [u16; 2],
    pairs: Vec<[ServerAddress; 2]>,
    public: Vec<IpAddr>,
}

/// The options of a request, by the attributes of RFC 5780.
#[derive(Debug, Clone, Copy, Default)]
struct RequestOptions {
    change_ip: bool,
    change_port: bool,
    /// Whether CHANGE-REQUEST or RESPONSE-PORT is present.
    wants_origin: bool,
    port: Option<u16>,
    padding: Option<usize>,
}

impl Discovery {
    /// Creates it from the main and the second port (0 for none), at most one pair of addresses of each family, and the public
    /// addresses that differ from the local ones. Without a second port there are no pairs, and a change of port is refused.
    #[must_use]
    pub fn new(ports: [u16; 2], pairs: &[ServerAddress], public: &[IpAddr]) -> Self {
        let of_family = |v6: bool| {
            let mut family = pairs.iter().copied().filter(move |address| address.local.is_ipv6() == v6);
            Some([family.next()?, family.next()?])
        };
        let pairs = [false, true].into_iter().filter(|_| ports[1] != 0).filter_map(of_family).collect();
        Self { ports, pairs, public: public.to_vec() }
    }

    /// Makes the response to a Binding request in a datagram from `client` to `server`; `None` for other messages.
    ///
    /// Follows RFC 5780 section 6.1, except that a server with one address accepts a change of port, so that clients can still discover
    /// port-dependent filtering. A change of address is refused with 420. A success response is written to `buffer`, which may be that of
    /// an earlier response.
    #[must_use]
    pub fn respond(
        &self,
        message: &Message<'_>,
        client: SocketAddr,
        server: SocketAddr,
        buffer: Vec<u8>,
    ) -> Option<BindingResponse> {
        if !binding::is_request(message) {
            return None;
        }
        let refused = |answer: Builder| BindingResponse {
            bytes: binding::finish(message, answer),
            from: server,
            to: client,
        };
        let attributes = message.unverified();
        let unknown = attributes.unknown(&KNOWN_HERE);
        Some(match RequestOptions::read(&attributes) {
            _ if !unknown.is_empty() => refused(binding::unknown_attributes(message, &unknown)),
            None => refused(binding::error(message, 400)),
            Some(options) if options.change_ip && self.pair(server.ip()).is_none() => {
                refused(binding::unknown_attributes(message, &[attr::CHANGE_REQUEST]))
            }
            Some(options) if options.change_port && self.ports[1] == 0 => {
                refused(binding::unknown_attributes(message, &[attr::CHANGE_REQUEST]))
            }
            Some(options) => self.grant(message, (client, server), options, buffer),
        })
    }

    /// Makes the success response to a request that was received at `server`.
    fn grant(
        &self,
        message: &Message<'_>,
        (client, server): (SocketAddr, SocketAddr),
        options: RequestOptions,
        buffer: Vec<u8>,
    ) -> BindingResponse {
        let pair = self.pair(server.ip());
        let address = match pair {
            Some([here, other]) => {
                if options.change_ip {
                    other
                } else {
                    here
                }
            }
            None => self.single_address(server.ip()),
        };
        let other_port = if server.port() == self.ports[0] { self.ports[1] } else { self.ports[0] };
        let port = if options.change_port { other_port } else { server.port() };
        let origin = SocketAddr::new(address.public, port);
        let mut answer = binding::mapped(message, client, buffer);
        if let Some([_, other]) = pair {
            answer = with_both(message, answer, client, origin, SocketAddr::new(other.public, other_port));
        } else if options.wants_origin {
            answer = answer.plain_address(attr::RESPONSE_ORIGIN, origin);
        }
        if let Some(len) = options.padding {
            answer = answer.attribute(attr::PADDING, &vec![0; len.min(MAX_PADDING)]);
        }
        BindingResponse {
            bytes: binding::finish(message, answer),
            from: SocketAddr::new(address.local, port),
            to: SocketAddr::new(client.ip(), options.port.unwrap_or(client.port())),
        }
    }

    /// Returns the address `ip` and the other one of its pair.
    fn pair(&self, ip: IpAddr) -> Option<[ServerAddress; 2]> {
        self.pairs.iter().find_map(|[a, b]| match ip {
            ip if ip == a.local => Some([*a, *b]),
            ip if ip == b.local => Some([*b, *a]),
            _ => None,
        })
    }

    /// Returns an address without a pair with its public address: clients never receive the local one.
    fn single_address(&self, ip: IpAddr) -> ServerAddress {
        let of_family = |public: &&IpAddr| public.is_ipv6() == ip.is_ipv6();
        let public = if self.public.contains(&ip) { None } else { self.public.iter().find(of_family) };
        ServerAddress { local: ip, public: public.copied().unwrap_or(ip) }
    }
}

/// Comprehension-required attributes that a datagram may have: those of any Binding request and of RFC 5780.
const KNOWN_HERE: [u16; KNOWN.len() + 3] = {
    let options = [attr::CHANGE_REQUEST, attr::RESPONSE_PORT, attr::PADDING];
    let mut all = [0; KNOWN.len() + 3];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < KNOWN.len() { KNOWN[at] } else { options[at - KNOWN.len()] };
        at += 1;
    }
    all
};

impl RequestOptions {
    /// Reads the attributes of RFC 5780; `None` if one is malformed, or if RESPONSE-PORT has PADDING with it, which would amplify traffic
    /// to another port.
    fn read(attributes: &Attributes<'_>) -> Option<Self> {
        let flags = match attributes.get(attr::CHANGE_REQUEST) {
            Some(_) => Some(attributes.u32(attr::CHANGE_REQUEST)?),
            None => None,
        };
        let port = match attributes.get(attr::RESPONSE_PORT) {
            // Some clients count the two bytes of padding in the length.
            Some(&[high, low] | &[high, low, _, _]) => {
                Some(u16::from_be_bytes([high, low])).filter(|port| *port != 0).map(Some)?
            }
            Some(_) => return None,
            None => None,
        };
        let padding = attributes.get(attr::PADDING).map(<[u8]>::len);
        if port.is_some() && padding.is_some() {
            return None;
        }
        let flag = |bit: u32| flags.is_some_and(|flags| flags & bit != 0);
        Some(Self {
            change_ip: flag(CHANGE_IP),
            change_port: flag(CHANGE_PORT),
            wants_origin: flags.is_some() || port.is_some(),
            port,
            padding,
        })
    }
}

/// Adds the addresses of a server with two, in the attributes of the client's RFC.
fn with_both(
    message: &Message<'_>,
    answer: Builder,
    client: SocketAddr,
    origin: SocketAddr,
    other: SocketAddr,
) -> Builder {
    if message.transaction().is_classic() {
        return answer
            .plain_address(attr::SOURCE_ADDRESS, origin)
            .plain_address(attr::CHANGED_ADDRESS, other);
    }
    answer
        .plain_address(attr::MAPPED_ADDRESS, client)
        .plain_address(attr::RESPONSE_ORIGIN, origin)
        .plain_address(attr::OTHER_ADDRESS, other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Class, Method, TransactionId};

    const CLIENT: &str = "192.0.2.5:4000";
    const A: &str = "198.51.100.1";
    const B: &str = "198.51.100.2";
    const IP: u32 = CHANGE_IP;
    const PORT: u32 = CHANGE_PORT;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn server_address(ip: &str) -> ServerAddress {
        ServerAddress { local: ip.parse().unwrap(), public: ip.parse().unwrap() }
    }

    fn two() -> Discovery {
        Discovery::new([3478, 3479], &[server_address(A), server_address(B)], &[])
    }

    fn one() -> Discovery {
        Discovery::new([3478, 3479], &[], &[])
    }

    fn binding() -> Builder {
        Builder::new(Class::Request, Method::BINDING, TransactionId::new([4; 12]))
    }

    fn change(flags: u32) -> Builder {
        binding().attribute(attr::CHANGE_REQUEST, &flags.to_be_bytes())
    }

    fn respond(discovery: &Discovery, request: Builder, server: &str) -> BindingResponse {
        let bytes = request.finish();
        discovery
            .respond(&Message::parse(&bytes).unwrap(), address(CLIENT), address(server), Vec::new())
            .unwrap()
    }

    fn attributes(answer: &BindingResponse) -> Attributes<'_> {
        Message::parse(&answer.bytes).unwrap().unverified()
    }

    /// Reads an address in the format of MAPPED-ADDRESS, IPv4.
    fn plain(answer: &BindingResponse, kind: u16) -> Option<SocketAddr> {
        match attributes(answer).get(kind)? {
            &[0, 1, p0, p1, a, b, c, d] => {
                Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([p0, p1]))))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_flags_choose_where_the_answer_leaves_from_as_table_1_says() {
        for (server, other) in [
            ("198.51.100.1:3478", "198.51.100.2:3479"),
            ("198.51.100.1:3479", "198.51.100.2:3478"),
            ("198.51.100.2:3478", "198.51.100.1:3479"),
            ("198.51.100.2:3479", "198.51.100.1:3478"),
        ] {
            let (here, there) = (address(server), address(other));
            for (request, from) in [
                (binding(), here),
                (change(0), here),
                (change(IP), SocketAddr::new(there.ip(), here.port())),
                (change(PORT), SocketAddr::new(here.ip(), there.port())),
                (change(IP | PORT), there),
            ] {
                let answer = respond(&two(), request, server);
                assert_eq!((answer.from, answer.to), (from, address(CLIENT)), "{server}");
                assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(from), "{server}");
                assert_eq!(plain(&answer, attr::OTHER_ADDRESS), Some(there), "{server}");
                assert_eq!(plain(&answer, attr::MAPPED_ADDRESS), Some(address(CLIENT)));
                let xored = attributes(&answer).xor_address(attr::XOR_MAPPED_ADDRESS);
                assert_eq!(xored, Ok(Some(address(CLIENT))));
            }
        }
    }

    #[test]
    fn with_one_address_the_port_changes_and_the_address_does_not() {
        let plain_answer = respond(&one(), binding(), "198.51.100.1:3478");
        assert_eq!(plain_answer.bytes.len(), 32);
        let answer = respond(&one(), change(PORT), "198.51.100.1:3478");
        assert_eq!(answer.from, address("198.51.100.1:3479"));
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(answer.from));
        assert_eq!(plain(&answer, attr::OTHER_ADDRESS), None);
        let back = respond(&one(), change(PORT), "198.51.100.1:3479");
        assert_eq!(back.from, address("198.51.100.1:3478"));
        for flags in [IP, IP | PORT] {
            let answer = respond(&one(), change(flags), "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(420));
            assert_eq!(attributes(&answer).get(attr::UNKNOWN_ATTRIBUTES), Some(&[0, 3][..]));
            assert_eq!(answer.from, address("198.51.100.1:3478"));
        }
    }

    #[test]
    fn an_address_outside_the_pair_is_served_as_a_single_one() {
        let answer = respond(&two(), binding(), "198.51.100.9:3478");
        assert_eq!(answer.bytes.len(), 32);
        assert_eq!(attributes(&respond(&two(), change(IP), "198.51.100.9:3478")).error_code(), Some(420));
    }

    #[test]
    fn addresses_are_told_as_they_are_seen_from_outside() {
        let server_address = |local: &str, public: &str| ServerAddress {
            local: local.parse().unwrap(),
            public: public.parse().unwrap(),
        };
        let pair = [server_address("10.0.0.1", A), server_address("10.0.0.2", B)];
        let natted = Discovery::new([3478, 3479], &pair, &[]);
        let answer = respond(&natted, change(IP), "10.0.0.1:3478");
        assert_eq!(answer.from, address("10.0.0.2:3478"));
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(address("198.51.100.2:3478")));
        assert_eq!(plain(&answer, attr::OTHER_ADDRESS), Some(address("198.51.100.2:3479")));
        let single = Discovery::new([3478, 3479], &[], &[A.parse().unwrap()]);
        let answer = respond(&single, change(PORT), "10.0.0.1:3478");
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(address("198.51.100.1:3479")));
    }

    #[test]
    fn a_response_port_is_a_port_of_the_asker() {
        for value in [&[0x1F, 0x90][..], &[0x1F, 0x90, 0, 0]] {
            let answer =
                respond(&two(), binding().attribute(attr::RESPONSE_PORT, value), "198.51.100.1:3478");
            assert_eq!(answer.to, address("192.0.2.5:8080"));
            let xored = attributes(&answer).xor_address(attr::XOR_MAPPED_ADDRESS);
            assert_eq!(xored, Ok(Some(address(CLIENT))));
        }
    }

    #[test]
    fn without_a_second_port_a_change_of_port_is_refused_and_no_other_address_is_told() {
        let single = Discovery::new([3478, 0], &[server_address(A), server_address(B)], &[]);
        for flags in [PORT, IP, IP | PORT] {
            let answer = respond(&single, change(flags), "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(420));
        }
        let answer = respond(&single, binding(), "198.51.100.1:3478");
        assert_eq!((answer.from, plain(&answer, attr::OTHER_ADDRESS)), (address("198.51.100.1:3478"), None));
    }

    #[test]
    fn malformed_wishes_are_refused_and_the_refusal_goes_to_the_asker() {
        let port = |value: &[u8]| binding().attribute(attr::RESPONSE_PORT, value);
        for request in [
            port(&[0x1F, 0x90]).attribute(attr::PADDING, &[0; 8]),
            port(&[0, 0]),
            port(&[1]),
            binding().attribute(attr::CHANGE_REQUEST, &[0; 3]),
        ] {
            let answer = respond(&two(), request, "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(400));
            assert_eq!((answer.from, answer.to), (address("198.51.100.1:3478"), address(CLIENT)));
        }
    }

    #[test]
    fn padding_is_as_long_as_the_requests_and_at_most_an_mtu() {
        for (requested, given) in [(0, 0), (4, 4), (700, 700), (1500, 1500), (9000, 1500)] {
            let request = binding().attribute(attr::PADDING, &vec![7; requested]);
            let answer = respond(&one(), request, "198.51.100.1:3478");
            assert_eq!(attributes(&answer).get(attr::PADDING).map(<[u8]>::len), Some(given));
        }
    }

    #[test]
    fn with_one_address_no_answer_passes_a_third_more_than_its_question() {
        let requests = [
            binding(),
            binding().fingerprint(),
            change(0),
            change(PORT),
            change(IP),
            change(PORT).attribute(attr::PADDING, &[]),
            binding().attribute(attr::PADDING, &[]),
            binding().attribute(attr::PADDING, &[0; 1500]),
            binding().attribute(attr::RESPONSE_PORT, &[9, 9]),
            binding().attribute(attr::RESPONSE_PORT, &[9, 9]).attribute(attr::PADDING, &[]),
            binding().attribute(0x7000, &[]),
            (0..8).fold(binding(), |request, kind| request.attribute(0x7000 + kind, &[])),
            Builder::new(Class::Request, Method::BINDING, TransactionId([8; 16])),
        ];
        for request in requests {
            let requested = request.clone().finish().len() + 28;
            let answered = respond(&one(), request.clone(), "198.51.100.1:3478").bytes.len() + 28;
            assert!(
                answered * 10 <= requested * 13,
                "{requested} bytes respond, {answered} answer: {request:?}"
            );
        }
    }

    #[test]
    fn with_two_addresses_no_answer_passes_three_times_its_question() {
        let server_address =
            |ip: &str| ServerAddress { local: ip.parse().unwrap(), public: ip.parse().unwrap() };
        let two = Discovery::new(
            [3478, 3479],
            &[
                server_address(A),
                server_address(B),
                server_address("2001:db8::1"),
                server_address("2001:db8::2"),
            ],
            &[],
        );
        let classic = || Builder::new(Class::Request, Method::BINDING, TransactionId([8; 16]));
        for (client, server) in [(CLIENT, "198.51.100.1:3478"), ("[2001:db8::9]:4000", "[2001:db8::1]:3478")]
        {
            for request in [binding(), binding().fingerprint(), change(IP), classic()] {
                let bytes = request.finish();
                let message = Message::parse(&bytes).unwrap();
                let answer = two.respond(&message, address(client), address(server), Vec::new()).unwrap();
                assert!(
                    answer.bytes.len() + 28 <= 3 * (bytes.len() + 28),
                    "{client}: {}",
                    answer.bytes.len()
                );
            }
        }
    }

    #[test]
    fn a_classic_client_learns_the_other_address_by_its_own_names() {
        let request = Builder::new(Class::Request, Method::BINDING, TransactionId([8; 16]));
        let answer = respond(&two(), request, "198.51.100.1:3478");
        assert_eq!(plain(&answer, attr::MAPPED_ADDRESS), Some(address(CLIENT)));
        assert_eq!(plain(&answer, attr::SOURCE_ADDRESS), Some(address("198.51.100.1:3478")));
        assert_eq!(plain(&answer, attr::CHANGED_ADDRESS), Some(address("198.51.100.2:3479")));
    }
}
