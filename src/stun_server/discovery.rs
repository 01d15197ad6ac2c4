//! NAT behaviour discovery: [RFC 5780](https://www.rfc-editor.org/rfc/rfc5780), over UDP.
//!
//! With two addresses of a family the whole of it; with one, the half that needs only the second port. What an answer says of the
//! server is left out where nobody can use it, so that a plain Binding stays small.

use super::binding::{self, KNOWN};
use crate::stun::{Attributes, Builder, Message, attr};
use std::net::{IpAddr, SocketAddr};

/// The longest PADDING of an answer: the usual MTU, so that the answer is one that has to be fragmented
/// ([RFC 5780 section 7.6](https://www.rfc-editor.org/rfc/rfc5780#section-7.6)).
const MAX_PADDING: usize = 1500;
const CHANGE_IP: u32 = 0x4;
const CHANGE_PORT: u32 = 0x2;

/// One of the server's addresses, and what clients see it as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddress {
    /// The address on this host.
    pub local: IpAddr,
    /// The same address from outside; differs behind a 1:1 NAT.
    pub public: IpAddr,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingResponse {
    /// A whole STUN message.
    pub bytes: Vec<u8>,
    /// The local address and port it is to leave from.
    pub from: SocketAddr,
    /// Where to: the client's IP address, at its port or the one it asked for.
    pub to: SocketAddr,
}

/// Where the server answers from: its two ports on every address, and the addresses that form pairs.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    ports: [u16; 2],
    pairs: Vec<[ServerAddress; 2]>,
    public: Vec<IpAddr>,
}

/// What a request asks for besides its own address.
#[derive(Debug, Clone, Copy, Default)]
struct Wishes {
    change_ip: bool,
    change_port: bool,
    /// Whether CHANGE-REQUEST or RESPONSE-PORT is there at all.
    asks_for_origin: bool,
    port: Option<u16>,
    padding: Option<usize>,
}

impl Discovery {
    /// Takes the main and the second port (0 where there is none: then there are no pairs, and a change of port is refused), `pairs`, of which a family has none or two, and `public`, the addresses that clients are
    /// told where they differ from this host's.
    #[must_use]
    pub fn new(ports: [u16; 2], pairs: &[ServerAddress], public: &[IpAddr]) -> Self {
        let of_family = |v6: bool| {
            let mut family = pairs.iter().copied().filter(move |home| home.local.is_ipv6() == v6);
            Some([family.next()?, family.next()?])
        };
        let pairs = [false, true].into_iter().filter(|_| ports[1] != 0).filter_map(of_family).collect();
        Self { ports, pairs, public: public.to_vec() }
    }

    /// Answers a Binding request that came in a datagram from `client` to `server`; `None` for everything that gets no answer.
    ///
    /// RFC 5780 section 6.1. With one address, a change of port is served, though the RFC would have it refused: filtering by port
    /// is then still found out. A change of address is refused with 420. A granted request's answer is written to `room`, so that
    /// who gives back an earlier answer's bytes allocates nothing.
    #[must_use]
    pub fn answer(
        &self,
        message: &Message<'_>,
        client: SocketAddr,
        server: SocketAddr,
        room: Vec<u8>,
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
        Some(match Wishes::read(&attributes) {
            _ if !unknown.is_empty() => refused(binding::unknown_attributes(message, &unknown)),
            None => refused(binding::error(message, 400)),
            Some(wishes) if wishes.change_ip && self.pair(server.ip()).is_none() => {
                refused(binding::unknown_attributes(message, &[attr::CHANGE_REQUEST]))
            }
            Some(wishes) if wishes.change_port && self.ports[1] == 0 => {
                refused(binding::unknown_attributes(message, &[attr::CHANGE_REQUEST]))
            }
            Some(wishes) => self.grant(message, (client, server), wishes, room),
        })
    }

    /// Makes the success response to a request that came to `server` and can be granted.
    fn grant(
        &self,
        message: &Message<'_>,
        (client, server): (SocketAddr, SocketAddr),
        wishes: Wishes,
        room: Vec<u8>,
    ) -> BindingResponse {
        let pair = self.pair(server.ip());
        let home = match pair {
            Some([here, other]) => {
                if wishes.change_ip {
                    other
                } else {
                    here
                }
            }
            None => self.home(server.ip()),
        };
        let other_port = if server.port() == self.ports[0] { self.ports[1] } else { self.ports[0] };
        let port = if wishes.change_port { other_port } else { server.port() };
        let origin = SocketAddr::new(home.public, port);
        let mut answer = binding::mapped(message, client, room);
        if let Some([_, other]) = pair {
            answer = with_both(message, answer, client, origin, SocketAddr::new(other.public, other_port));
        } else if wishes.asks_for_origin {
            answer = answer.plain_address(attr::RESPONSE_ORIGIN, origin);
        }
        if let Some(len) = wishes.padding {
            answer = answer.attribute(attr::PADDING, &vec![0; len.min(MAX_PADDING)]);
        }
        BindingResponse {
            bytes: binding::finish(message, answer),
            from: SocketAddr::new(home.local, port),
            to: SocketAddr::new(client.ip(), wishes.port.unwrap_or(client.port())),
        }
    }

    /// Returns the pair that `ip` belongs to, it first.
    fn pair(&self, ip: IpAddr) -> Option<[ServerAddress; 2]> {
        self.pairs.iter().find_map(|[a, b]| match ip {
            ip if ip == a.local => Some([*a, *b]),
            ip if ip == b.local => Some([*b, *a]),
            _ => None,
        })
    }

    /// Returns an address without a pair as clients know it: an inner one is nobody's business outside.
    fn home(&self, ip: IpAddr) -> ServerAddress {
        let told = |public: &&IpAddr| public.is_ipv6() == ip.is_ipv6();
        let public = if self.public.contains(&ip) { None } else { self.public.iter().find(told) };
        ServerAddress { local: ip, public: public.copied().unwrap_or(ip) }
    }
}

/// Comprehension-required attributes that a datagram may carry: those of any Binding request, and the wishes of RFC 5780.
const KNOWN_HERE: [u16; KNOWN.len() + 3] = {
    let wishes = [attr::CHANGE_REQUEST, attr::RESPONSE_PORT, attr::PADDING];
    let mut all = [0; KNOWN.len() + 3];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < KNOWN.len() { KNOWN[at] } else { wishes[at - KNOWN.len()] };
        at += 1;
    }
    all
};

impl Wishes {
    /// Reads the attributes of RFC 5780; `None` where one is malformed, or RESPONSE-PORT comes with PADDING, which would make
    /// somebody else's port a target.
    fn read(attributes: &Attributes<'_>) -> Option<Self> {
        let flags = match attributes.get(attr::CHANGE_REQUEST) {
            Some(_) => Some(attributes.u32(attr::CHANGE_REQUEST)?),
            None => None,
        };
        let port = match attributes.get(attr::RESPONSE_PORT) {
            // Its two bytes of padding are counted in the length by some.
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
            asks_for_origin: flags.is_some() || port.is_some(),
            port,
            padding,
        })
    }
}

/// Adds what a server with two addresses says of itself, under the names that the client's RFC gives it.
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

    fn home(ip: &str) -> ServerAddress {
        ServerAddress { local: ip.parse().unwrap(), public: ip.parse().unwrap() }
    }

    fn two() -> Discovery {
        Discovery::new([3478, 3479], &[home(A), home(B)], &[])
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

    fn ask(discovery: &Discovery, request: Builder, server: &str) -> BindingResponse {
        let bytes = request.finish();
        discovery
            .answer(&Message::parse(&bytes).unwrap(), address(CLIENT), address(server), Vec::new())
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
                let answer = ask(&two(), request, server);
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
        let plain_answer = ask(&one(), binding(), "198.51.100.1:3478");
        assert_eq!(plain_answer.bytes.len(), 32);
        let answer = ask(&one(), change(PORT), "198.51.100.1:3478");
        assert_eq!(answer.from, address("198.51.100.1:3479"));
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(answer.from));
        assert_eq!(plain(&answer, attr::OTHER_ADDRESS), None);
        let back = ask(&one(), change(PORT), "198.51.100.1:3479");
        assert_eq!(back.from, address("198.51.100.1:3478"));
        for flags in [IP, IP | PORT] {
            let answer = ask(&one(), change(flags), "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(420));
            assert_eq!(attributes(&answer).get(attr::UNKNOWN_ATTRIBUTES), Some(&[0, 3][..]));
            assert_eq!(answer.from, address("198.51.100.1:3478"));
        }
    }

    #[test]
    fn an_address_outside_the_pair_is_served_as_a_single_one() {
        let answer = ask(&two(), binding(), "198.51.100.9:3478");
        assert_eq!(answer.bytes.len(), 32);
        assert_eq!(attributes(&ask(&two(), change(IP), "198.51.100.9:3478")).error_code(), Some(420));
    }

    #[test]
    fn addresses_are_told_as_they_are_seen_from_outside() {
        let home = |local: &str, public: &str| ServerAddress {
            local: local.parse().unwrap(),
            public: public.parse().unwrap(),
        };
        let pair = [home("10.0.0.1", A), home("10.0.0.2", B)];
        let natted = Discovery::new([3478, 3479], &pair, &[]);
        let answer = ask(&natted, change(IP), "10.0.0.1:3478");
        assert_eq!(answer.from, address("10.0.0.2:3478"));
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(address("198.51.100.2:3478")));
        assert_eq!(plain(&answer, attr::OTHER_ADDRESS), Some(address("198.51.100.2:3479")));
        let single = Discovery::new([3478, 3479], &[], &[A.parse().unwrap()]);
        let answer = ask(&single, change(PORT), "10.0.0.1:3478");
        assert_eq!(plain(&answer, attr::RESPONSE_ORIGIN), Some(address("198.51.100.1:3479")));
    }

    #[test]
    fn a_response_port_is_a_port_of_the_asker() {
        for value in [&[0x1F, 0x90][..], &[0x1F, 0x90, 0, 0]] {
            let answer = ask(&two(), binding().attribute(attr::RESPONSE_PORT, value), "198.51.100.1:3478");
            assert_eq!(answer.to, address("192.0.2.5:8080"));
            let xored = attributes(&answer).xor_address(attr::XOR_MAPPED_ADDRESS);
            assert_eq!(xored, Ok(Some(address(CLIENT))));
        }
    }

    #[test]
    fn without_a_second_port_a_change_of_port_is_refused_and_no_other_address_is_told() {
        let single = Discovery::new([3478, 0], &[home(A), home(B)], &[]);
        for flags in [PORT, IP, IP | PORT] {
            let answer = ask(&single, change(flags), "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(420));
        }
        let answer = ask(&single, binding(), "198.51.100.1:3478");
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
            let answer = ask(&two(), request, "198.51.100.1:3478");
            assert_eq!(attributes(&answer).error_code(), Some(400));
            assert_eq!((answer.from, answer.to), (address("198.51.100.1:3478"), address(CLIENT)));
        }
    }

    #[test]
    fn padding_is_as_long_as_the_requests_and_at_most_an_mtu() {
        for (asked, given) in [(0, 0), (4, 4), (700, 700), (1500, 1500), (9000, 1500)] {
            let request = binding().attribute(attr::PADDING, &vec![7; asked]);
            let answer = ask(&one(), request, "198.51.100.1:3478");
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
            let asked = request.clone().finish().len() + 28;
            let answered = ask(&one(), request.clone(), "198.51.100.1:3478").bytes.len() + 28;
            assert!(answered * 10 <= asked * 13, "{asked} bytes ask, {answered} answer: {request:?}");
        }
    }

    #[test]
    fn with_two_addresses_no_answer_passes_three_times_its_question() {
        let home = |ip: &str| ServerAddress { local: ip.parse().unwrap(), public: ip.parse().unwrap() };
        let two =
            Discovery::new([3478, 3479], &[home(A), home(B), home("2001:db8::1"), home("2001:db8::2")], &[]);
        let classic = || Builder::new(Class::Request, Method::BINDING, TransactionId([8; 16]));
        for (client, server) in [(CLIENT, "198.51.100.1:3478"), ("[2001:db8::9]:4000", "[2001:db8::1]:3478")]
        {
            for request in [binding(), binding().fingerprint(), change(IP), classic()] {
                let bytes = request.finish();
                let message = Message::parse(&bytes).unwrap();
                let answer = two.answer(&message, address(client), address(server), Vec::new()).unwrap();
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
        let answer = ask(&two(), request, "198.51.100.1:3478");
        assert_eq!(plain(&answer, attr::MAPPED_ADDRESS), Some(address(CLIENT)));
        assert_eq!(plain(&answer, attr::SOURCE_ADDRESS), Some(address("198.51.100.1:3478")));
        assert_eq!(plain(&answer, attr::CHANGED_ADDRESS), Some(address("198.51.100.2:3479")));
    }
}
