//! Messages of an Internet Gateway Device (UPnP): discovery, the description of the device, and the actions of its connection service.
//!
//! The router is not trusted: what it sends is short, and every address in it must be its own.

use super::wire::MappedProtocol;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The port of discovery.
pub(super) const DISCOVERY_PORT: u16 = 1900;
/// The devices that are searched for.
const DEVICES: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];
/// The services that map ports, the better ones first.
pub(super) const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// The service that opens the IPv6 firewall.
pub(super) const FIREWALL_SERVICES: [&str; 1] = ["urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"];
/// Longest path of a URL.
const MAX_PATH: usize = 256;
/// Longest description and answer.
pub(super) const MAX_RESPONSE: usize = 64 << 10;
/// What the router shows to its owner.
const DESCRIPTION: &str = "ginnel";

/// Where the router takes requests by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) address: SocketAddr,
    pub(super) path: String,
}

/// The connection service of a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConnectionService {
    pub(super) control: Location,
    pub(super) kind: &'static str,
}

/// An action of the connection service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    ExternalAddress,
    Add { protocol: MappedProtocol, internal: SocketAddr, external_port: u16, lifetime: Duration },
    Delete { protocol: MappedProtocol, external_port: u16 },
    FirewallStatus,
    AddPinhole { protocol: MappedProtocol, internal: SocketAddr, lifetime: Duration },
    UpdatePinhole { id: u16, lifetime: Duration },
    DeletePinhole { id: u16 },
}

/// Why a router did not do what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ActionError {
    /// The error code of the response.
    Refused(u16),
    /// The response is not one.
    Malformed,
}

/// Makes the requests of a search by this multicast address.
pub(super) fn searches(group: IpAddr) -> impl Iterator<Item = Vec<u8>> {
    let group = SocketAddr::new(group, DISCOVERY_PORT);
    DEVICES.into_iter().map(move |device| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {group}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {device}\r\n\r\n"
        )
        .into_bytes()
    })
}

/// Reads the router's response to a search: where its description is.
pub(super) fn parse_search_response(bytes: &[u8], is_router: impl Fn(IpAddr) -> bool) -> Option<Location> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?;
    if !status.starts_with("HTTP/1.") || !status.contains(" 200 ") {
        return None;
    }
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then_some(value.trim())
    })?;
    parse_url(location, is_router)
}

/// Reads an absolute URL at the router's own address.
fn parse_url(url: &str, is_router: impl Fn(IpAddr) -> bool) -> Option<Location> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = match authority.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let host = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            SocketAddr::new(host.unwrap_or(authority).parse().ok()?, 80)
        }
    };
    (is_router(address.ip()) && address.port() != 0 && is_path(path))
        .then(|| Location { address, path: path.to_owned() })
}

/// A path goes into a request as it is.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Makes the request for a description.
pub(super) fn description_request(location: &Location) -> Vec<u8> {
    let (path, host) = (&location.path, location.host());
    format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}

impl Location {
    /// Returns the address without a scope, which is of no use to others.
    fn host(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.address.port())
    }
}

/// Returns the body of a response, and whether its status is a success.
pub(super) fn parse_response(bytes: &[u8]) -> Option<(bool, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?;
    head.starts_with("HTTP/1.").then_some((status == "200", body))
}

/// Returns whether the whole response has arrived, by its length.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let Some((head, body)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once("\r\n\r\n"))
    else {
        return false;
    };
    let length = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// Reads a description: the first of these services, and where it takes requests.
pub(super) fn parse_description(
    xml: &str,
    location: &Location,
    kinds: &[&'static str],
) -> Option<ConnectionService> {
    let services = || xml.split("<service>").skip(1).filter_map(|rest| rest.split_once("</service>"));
    kinds.iter().copied().find_map(|kind| {
        let (service, _) = services().find(|(service, _)| element(service, "serviceType") == Some(kind))?;
        let url = element(service, "controlURL")?;
        let control = match url.strip_prefix('/') {
            _ if url.starts_with("http:") => {
                let found = parse_url(url, |ip| ip == location.address.ip())?;
                let mut address = location.address;
                address.set_port(found.address.port());
                Location { address, ..found }
            }
            Some(_) => Location { address: location.address, path: url.to_owned() },
            None => Location { address: location.address, path: format!("/{url}") },
        };
        is_path(&control.path).then_some(ConnectionService { control, kind })
    })
}

/// Returns the text of the first element with this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

/// Makes the request for an action.
pub(super) fn action_request(service: &ConnectionService, action: &Action) -> Vec<u8> {
    let (name, arguments) = match action {
        Action::ExternalAddress => ("GetExternalIPAddress", String::new()),
        Action::Add { protocol, internal, external_port, lifetime } => (
            "AddPortMapping",
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external_port}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol><NewInternalPort>{}</NewInternalPort>\
                 <NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
                 <NewLeaseDuration>{}</NewLeaseDuration>",
                protocol_name(*protocol),
                internal.port(),
                internal.ip(),
                lifetime.as_secs()
            ),
        ),
        Action::Delete { protocol, external_port } => (
            "DeletePortMapping",
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external_port}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol>",
                protocol_name(*protocol)
            ),
        ),
        Action::FirewallStatus => ("GetFirewallStatus", String::new()),
        Action::AddPinhole { protocol, internal, lifetime } => (
            "AddPinhole",
            format!(
                "<RemoteHost></RemoteHost><RemotePort>0</RemotePort><InternalClient>{}</InternalClient>\
                 <InternalPort>{}</InternalPort><Protocol>{}</Protocol><LeaseTime>{}</LeaseTime>",
                internal.ip(),
                internal.port(),
                protocol.number(),
                lifetime.as_secs()
            ),
        ),
        Action::UpdatePinhole { id, lifetime } => (
            "UpdatePinhole",
            format!("<UniqueID>{id}</UniqueID><NewLeaseTime>{}</NewLeaseTime>", lifetime.as_secs()),
        ),
        Action::DeletePinhole { id } => ("DeletePinhole", format!("<UniqueID>{id}</UniqueID>")),
    };
    let kind = service.kind;
    let body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
         <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
    );
    let (path, host) = (&service.control.path, service.control.host());
    format!(
        "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         SOAPAction: \"{kind}#{name}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn protocol_name(protocol: MappedProtocol) -> &'static str {
    match protocol {
        MappedProtocol::Udp => "UDP",
        MappedProtocol::Tcp => "TCP",
    }
}

/// Reads the response to an action: its body.
pub(super) fn parse_action_response(bytes: &[u8]) -> Result<&str, ActionError> {
    let (is_success, body) = parse_response(bytes).ok_or(ActionError::Malformed)?;
    if is_success {
        return Ok(body);
    }
    let code = element(body, "errorCode").and_then(|code| code.parse().ok());
    Err(code.map_or(ActionError::Malformed, ActionError::Refused))
}

/// Reads the external address.
pub(super) fn external_address(body: &str) -> Option<IpAddr> {
    element(body, "NewExternalIPAddress")?.parse().ok()
}

/// Reads the number of a new pinhole.
pub(super) fn pinhole_id(body: &str) -> Option<u16> {
    element(body, "UniqueID")?.parse().ok()
}

/// Reads the status of the firewall: whether there is one that hosts may open.
pub(super) fn allows_pinholes(body: &str) -> bool {
    let is_set = |name| element(body, name).is_some_and(|value| matches!(value, "1" | "true" | "yes"));
    is_set("FirewallEnabled") && is_set("InboundPinholeAllowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const DEVICE: &str = "<root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>\
        <controlURL>/ctl/CmnIfCfg</controlURL></service><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>URL</controlURL></service></serviceList></device></root>";

    fn found(location: &str) -> Option<Location> {
        let response = format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {location}\r\n\r\n");
        parse_search_response(response.as_bytes(), |ip| ip == ROUTER)
    }

    fn location() -> Location {
        found("http://10.0.0.1:5000/rootDesc.xml").unwrap()
    }

    #[test]
    fn the_description_is_at_the_routers_own_address() {
        assert_eq!(location().address, "10.0.0.1:5000".parse().unwrap());
        assert_eq!(location().path, "/rootDesc.xml");
        assert_eq!(found("http://10.0.0.1").unwrap().address.port(), 80);
        for other in [
            "http://10.0.0.2:5000/rootDesc.xml",
            "http://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:22/",
            "http://router.example/",
            "http://10.0.0.1@127.0.0.1/",
            "https://10.0.0.1/",
            "http://10.0.0.1/a b",
            "http://10.0.0.1:0/",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
        let long = format!("http://10.0.0.1/{}", "a".repeat(MAX_PATH));
        assert_eq!(found(&long), None);
    }

    #[test]
    fn the_connection_service_is_at_the_routers_own_address() {
        let expected =
            |path: &str| Location { address: "10.0.0.1:5000".parse().unwrap(), path: path.to_owned() };
        for (url, path) in [("/ctl/IPConn", "/ctl/IPConn"), ("ctl", "/ctl"), ("http://10.0.0.1:5000/c", "/c")]
        {
            let xml = DEVICE.replace(">URL<", &format!(">{url}<"));
            let found = parse_description(&xml, &location(), &SERVICES).unwrap();
            assert_eq!((found.control, found.kind), (expected(path), SERVICES[1]));
        }
        for url in ["http://10.0.0.2/c", "/a\r\nX-Header: 1", ""] {
            let xml = DEVICE.replace(">URL<", &format!(">{url}<"));
            let found = parse_description(&xml, &location(), &SERVICES);
            assert!(found.is_none_or(|service| service.control.path == "/"), "{url}");
        }
    }

    #[test]
    fn an_action_is_one_request_and_an_error_has_its_number() {
        let service = ConnectionService { control: location(), kind: SERVICES[1] };
        let internal = "10.0.0.5:4000".parse().unwrap();
        let lifetime = Duration::from_secs(3600);
        let add = Action::Add { protocol: MappedProtocol::Udp, internal, external_port: 4001, lifetime };
        let request = String::from_utf8(action_request(&service, &add)).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /rootDesc.xml HTTP/1.0\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(
            head.contains("SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"")
        );
        assert_eq!(element(body, "NewInternalClient"), Some("10.0.0.5"));
        assert_eq!(element(body, "NewExternalPort"), Some("4001"));
        let refused = b"HTTP/1.1 500 Internal Server Error\r\n\r\n<errorCode>718</errorCode>";
        assert_eq!(parse_action_response(refused), Err(ActionError::Refused(718)));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n<NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>";
        assert!(is_complete(answer));
        assert_eq!(external_address(parse_action_response(answer).unwrap()), Some([203, 0, 113, 7].into()));
        assert!(!is_complete(&answer[..60]));
    }

    #[test]
    fn a_pinhole_has_a_number() {
        let near = |ip: IpAddr| ip == "2001:db8::1".parse::<IpAddr>().unwrap();
        let response = b"HTTP/1.1 200 OK\r\nLOCATION: http://[2001:db8::1]:5000/root.xml\r\n\r\n";
        let found = parse_search_response(response, near).unwrap();
        assert_eq!(found.address, "[2001:db8::1]:5000".parse().unwrap());
        let other = b"HTTP/1.1 200 OK\r\nLOCATION: http://[2001:db8::2]:5000/root.xml\r\n\r\n";
        assert_eq!(parse_search_response(other, near), None);
        let service = ConnectionService { control: found, kind: FIREWALL_SERVICES[0] };
        let internal = "[2001:db8::7]:4000".parse().unwrap();
        let lifetime = Duration::from_secs(3600);
        let add = Action::AddPinhole { protocol: MappedProtocol::Udp, internal, lifetime };
        let request = String::from_utf8(action_request(&service, &add)).unwrap();
        for part in [
            "Host: [2001:db8::1]:5000\r\n",
            "WANIPv6FirewallControl:1#AddPinhole\"",
            "<InternalClient>2001:db8::7</InternalClient><InternalPort>4000</InternalPort><Protocol>17</Protocol>",
            "<LeaseTime>3600</LeaseTime>",
        ] {
            assert!(request.contains(part), "{part} in {request}");
        }
        assert_eq!(pinhole_id("<UniqueID>42</UniqueID>"), Some(42));
        assert_eq!(pinhole_id("<UniqueID>70000</UniqueID>"), None);
        let status = |enabled, allowed| {
            format!(
                "<FirewallEnabled>{enabled}</FirewallEnabled><InboundPinholeAllowed>{allowed}</InboundPinholeAllowed>"
            )
        };
        assert!(allows_pinholes(&status(1, 1)));
        assert!(!allows_pinholes(&status(1, 0)) && !allows_pinholes(&status(0, 1)) && !allows_pinholes(""));
    }

    proptest! {
        #[test]
        fn no_response_makes_the_parsers_panic(text in "\\PC{0,200}") {
            let _ = parse_search_response(text.as_bytes(), |ip| ip == ROUTER);
            let _ = parse_action_response(text.as_bytes());
            let _ = parse_description(&text, &location(), &SERVICES);
            let _ = external_address(&text);
            let _ = is_complete(text.as_bytes());
        }
    }
}
