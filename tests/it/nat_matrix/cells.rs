//! The cells of the matrix: where the two agents are, and the path that they have to end on.

use crate::lab::NatBehavior;

/// The network in front of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Open,
    Firewall,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Sequential,
    Block,
    Random,
    UdpBlocked,
    Ipv6Only,
}

pub(super) const CLASSES: [Class; 10] = [
    Class::Open,
    Class::Firewall,
    Class::FullCone,
    Class::AddressRestricted,
    Class::PortRestricted,
    Class::Sequential,
    Class::Block,
    Class::Random,
    Class::UdpBlocked,
    Class::Ipv6Only,
];

impl Class {
    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::Open => "O",
            Self::Firewall => "F",
            Self::FullCone => "FC",
            Self::AddressRestricted => "AR",
            Self::PortRestricted => "PR",
            Self::Sequential => "SP",
            Self::Block => "SB",
            Self::Random => "SR",
            Self::UdpBlocked => "UB",
            Self::Ipv6Only => "V6",
        }
    }

    /// What the tag means, for the table's legend.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Open => "public address, no filter",
            Self::Firewall => "public address, firewall that passes only answers",
            Self::FullCone => "endpoint-independent mapping and filtering",
            Self::AddressRestricted => "endpoint-independent mapping, address-dependent filtering",
            Self::PortRestricted => "endpoint-independent mapping, address and port-dependent filtering",
            Self::Sequential => "a port per destination, the one after the last",
            Self::Block => "a port per destination, random in a block of 512",
            Self::Random => "a port per destination, random",
            Self::UdpBlocked => "only TCP passes",
            Self::Ipv6Only => "IPv6 with a firewall; IPv4 only through NAT64",
        }
    }

    /// The NAT of the laboratory; `None` for no NAT, and for IPv6.
    pub(super) fn behavior(self) -> Option<NatBehavior> {
        match self {
            Self::Open | Self::Ipv6Only => None,
            Self::Firewall => Some(NatBehavior::FIREWALL),
            Self::FullCone => Some(NatBehavior::FULL_CONE),
            Self::AddressRestricted => Some(NatBehavior::ADDRESS_RESTRICTED),
            Self::PortRestricted => Some(NatBehavior::PORT_RESTRICTED),
            Self::Sequential => Some(NatBehavior::SEQUENTIAL),
            Self::Block => Some(NatBehavior::BLOCK),
            Self::Random => Some(NatBehavior::RANDOM),
            Self::UdpBlocked => Some(NatBehavior::UDP_BLOCKED),
        }
    }
}

/// How a pair has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Direct by plain ICE.
    Direct,
    /// Direct by plain ICE, through a peer-reflexive candidate.
    PeerReflexive,
    /// Direct by port prediction.
    Predicted,
    /// Direct by a bounded spray of probes.
    Sprayed,
    /// Direct by TCP.
    DirectTcp,
    /// Direct by TCP, or relayed with the reason printed.
    DirectTcpOrRelay,
    /// Relayed with the reason printed.
    Relay,
    /// Direct by IPv6.
    DirectIpv6,
    /// Direct between inner addresses.
    Inner,
}

impl Expected {
    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::Direct => "D",
            Self::PeerReflexive => "X",
            Self::Predicted => "P",
            Self::Sprayed => "B",
            Self::DirectTcp => "T",
            Self::DirectTcpOrRelay => "R/T",
            Self::Relay => "R",
            Self::DirectIpv6 => "D over IPv6",
            Self::Inner => "D inside",
        }
    }

    /// Whether the pair has to get a direct path.
    pub(super) fn is_direct(self) -> bool {
        !matches!(self, Self::DirectTcpOrRelay | Self::Relay)
    }
}

/// Where both agents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// Each in a network of its own.
    Apart(Class, Class),
    /// Behind one NAT.
    OneNat(Class),
    /// One behind two layers of NAT, the other behind one.
    DoubleNat,
    /// In two homes of one carrier, whose NAT hairpins or not.
    OneCarrier { hairpin: bool },
    /// Behind port-restricted NATs, with IPv6 beside.
    DualStack,
    /// One where nothing but TCP to port 443 passes.
    Port443,
    /// One that reaches only a proxy of this protocol.
    Proxy(&'static str),
    /// One with the addresses of twenty container bridges.
    Bridges,
    /// Apart, and nothing comes directly from the first to the second.
    OneWay,
    /// One with a VPN that has its default route.
    Vpn,
    /// Both behind symmetric NATs, one of which maps ports by UPnP, NAT-PMP and PCP; or by NAT-PMP alone.
    PortMapping { only_nat_pmp: bool },
    /// One behind two layers of NAT, of which the symmetric one maps ports: the outer, which the host does not reach, or the inner, whose
    /// outer address is private. The other behind a symmetric NAT.
    MappedLayer { is_outer: bool },
    /// Behind port-restricted NATs, with two servers, the first of which is dead.
    DeadServer,
}

/// One cell of the matrix.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) name: String,
    pub(super) setting: Setting,
    pub(super) expected: Expected,
}

/// What each pair of classes has to give, one row a class, from itself on.
const PAIRS: [&[&str]; 10] = [
    &["D", "D", "D", "D", "D", "X", "X", "X", "T", "D"],
    &["D", "D", "D", "D", "P", "B", "B", "R/T", "D"],
    &["D", "D", "D", "X", "X", "X", "R/T", "D"],
    &["D", "D", "X", "X", "X", "R/T", "D"],
    &["D", "P", "B", "B", "R/T", "D"],
    &["P", "R", "R", "R", "P"],
    &["R", "R", "R", "B"],
    &["R", "R", "B"],
    &["R/T", "R"],
    &["D6"],
];

/// The 55 pairs of ten classes.
pub(super) fn pairs() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (row, expected) in PAIRS.iter().enumerate() {
        for (column, expected) in expected.iter().enumerate() {
            let (first, second) = (CLASSES[row], CLASSES[row + column]);
            let expected = match *expected {
                "D" => Expected::Direct,
                "X" => Expected::PeerReflexive,
                "P" => Expected::Predicted,
                "B" => Expected::Sprayed,
                "T" => Expected::DirectTcp,
                "R/T" => Expected::DirectTcpOrRelay,
                "R" => Expected::Relay,
                "D6" => Expected::DirectIpv6,
                other => panic!("no path {other}"),
            };
            let name = format!("{} x {}", first.tag(), second.tag());
            cells.push(Cell { name, setting: Setting::Apart(first, second), expected });
        }
    }
    cells
}

/// The cells that are no pair of classes.
pub(super) fn special() -> Vec<Cell> {
    let cells = [
        ("only port 443 x PR", Setting::Port443, Expected::DirectTcpOrRelay),
        ("one NAT, PR", Setting::OneNat(Class::PortRestricted), Expected::Inner),
        ("one NAT, SR", Setting::OneNat(Class::Random), Expected::Inner),
        ("double NAT x PR", Setting::DoubleNat, Expected::Direct),
        ("one carrier that hairpins", Setting::OneCarrier { hairpin: true }, Expected::Direct),
        ("one carrier that does not hairpin", Setting::OneCarrier { hairpin: false }, Expected::Relay),
        ("dual stack, PR", Setting::DualStack, Expected::Direct),
        ("HTTP proxy x PR", Setting::Proxy("http"), Expected::Relay),
        ("SOCKS 5 proxy x PR", Setting::Proxy("socks5"), Expected::Relay),
        ("20 container bridges x PR", Setting::Bridges, Expected::Direct),
        ("one way only", Setting::OneWay, Expected::Relay),
        ("VPN on one side x PR", Setting::Vpn, Expected::Direct),
        ("SR with port mapping x SR", Setting::PortMapping { only_nat_pmp: false }, Expected::Direct),
        ("SR with NAT-PMP alone x SR", Setting::PortMapping { only_nat_pmp: true }, Expected::Direct),
        ("double NAT, the outer maps ports x SR", Setting::MappedLayer { is_outer: true }, Expected::Relay),
        ("double NAT, the inner maps ports x SR", Setting::MappedLayer { is_outer: false }, Expected::Relay),
        ("the first of two servers dead, PR", Setting::DeadServer, Expected::Direct),
    ];
    cells.map(|(name, setting, expected)| Cell { name: name.to_owned(), setting, expected }).to_vec()
}

/// Every cell.
pub(super) fn all() -> Vec<Cell> {
    [pairs(), special()].concat()
}

/// What CI runs once.
pub(super) const IN_CI: [&str; 20] = [
    "O x O",
    "O x F",
    "F x PR",
    "FC x FC",
    "AR x AR",
    "PR x PR",
    "O x SR",
    "FC x SP",
    "FC x SR",
    "AR x SB",
    "O x UB",
    "PR x UB",
    "SR x SR",
    "SB x SR",
    "one NAT, PR",
    "double NAT x PR",
    "one carrier that hairpins",
    "one carrier that does not hairpin",
    "dual stack, PR",
    "one way only",
];

/// What runs five times as often as the others.
pub(super) const OFTEN: [&str; 10] = [
    "F x F", "F x PR", "FC x PR", "AR x PR", "PR x PR", "O x SR", "FC x SP", "FC x SB", "AR x SR", "SR x SR",
];

/// What also runs with loss.
pub(super) const LOSSY: [&str; 13] = [
    "F x PR", "FC x PR", "AR x PR", "PR x PR", "O x SR", "FC x SP", "AR x SR", "SP x PR", "PR x SB",
    "PR x SR", "SP x SP", "SR x SR", "PR x UB",
];

/// The cells of these names.
pub(super) fn named(names: &[&str]) -> Vec<Cell> {
    let cells = all();
    let turned = |name: &str| name.split_once(" x ").map(|(first, second)| format!("{second} x {first}"));
    names
        .iter()
        .map(|name| {
            let found =
                cells.iter().find(|cell| cell.name == *name || Some(&cell.name) == turned(name).as_ref());
            found.unwrap_or_else(|| panic!("no cell {name}")).clone()
        })
        .collect()
}
