//! The client of an HTTP request that a proxy has forwarded: `X-Forwarded-For`, and `Forwarded` of
//! [RFC 7239](https://www.rfc-editor.org/rfc/rfc7239). Pure.
//!
//! A client can write both headers, and each proxy appends the source address of its connection. So elements are read from the right; trusted
//! proxies are skipped, and the first other address is the client's.

use crate::limits::NetworkPrefix;
use std::net::{IpAddr, SocketAddr};

/// Returns whether `ip` is one of the `trusted` proxies.
#[must_use]
pub(crate) fn is_trusted(trusted: &[NetworkPrefix], ip: IpAddr) -> bool {
    NetworkPrefix::any_contains(trusted, ip)
}

/// Returns the client's address from the headers of a trusted proxy: the values of `X-Forwarded-For` and of `Forwarded`, each in order.
///
/// `None` if an element is not an address, if all addresses are trusted proxies, or if the headers disagree: a proxy may write one header
/// and forward the other as the client sent it, and the server cannot know which.
pub(crate) fn client<'a>(
    trusted: &[NetworkPrefix],
    x_forwarded_for: impl Iterator<Item = &'a [u8]>,
    forwarded: impl Iterator<Item = &'a [u8]>,
) -> Option<IpAddr> {
    let of_list = rightmost(trusted, x_forwarded_for, &X_FORWARDED_FOR);
    let of_standard = rightmost(trusted, forwarded, &FORWARDED);
    match (of_list, of_standard) {
        (HeaderClient::Absent, named) | (named, HeaderClient::Absent) => named.address(),
        (one, other) => one.address().filter(|ip| Some(*ip) == other.address()),
    }
}

/// The syntax of a header.
struct Format {
    elements: fn(&str) -> Vec<&str>,
    read: fn(&str) -> Option<IpAddr>,
}

const X_FORWARDED_FOR: Format = Format { elements: |value| value.split(',').collect(), read: address };
const FORWARDED: Format = Format { elements: |value| split(value, ','), read: for_parameter };

/// The client's address in one header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeaderClient {
    /// There is no such header.
    Absent,
    /// It cannot be parsed, or names only trusted proxies.
    Unusable,
    Client(IpAddr),
}

impl HeaderClient {
    fn address(self) -> Option<IpAddr> {
        match self {
            Self::Client(ip) => Some(ip),
            Self::Absent | Self::Unusable => None,
        }
    }
}

/// Reads a header's elements from the right until one is not trusted.
fn rightmost<'a>(
    trusted: &[NetworkPrefix],
    values: impl Iterator<Item = &'a [u8]>,
    format: &Format,
) -> HeaderClient {
    let values: Vec<_> = values.collect();
    if values.is_empty() {
        return HeaderClient::Absent;
    }
    for value in values.into_iter().rev() {
        let Ok(value) = std::str::from_utf8(value) else { return HeaderClient::Unusable };
        for element in (format.elements)(value).into_iter().rev() {
            match (format.read)(element) {
                Some(ip) if is_trusted(trusted, ip) => {}
                Some(ip) => return HeaderClient::Client(ip.to_canonical()),
                None => return HeaderClient::Unusable,
            }
        }
    }
    HeaderClient::Unusable
}

/// Returns the address of `for=` in one element of `Forwarded`.
fn for_parameter(element: &str) -> Option<IpAddr> {
    address(parameter(element, "for")?)
}

/// Returns a parameter of one element of `Forwarded`, without quotes.
fn parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let value = split(element, ';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then_some(value.trim())
    })?;
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Some(quoted.unwrap_or(value))
}

/// Returns whether the client reached the proxy over HTTPS, from the headers of a trusted proxy: the values of `X-Forwarded-Proto` and of
/// `Forwarded`. Everything that the headers state must be `https`, and they must state something.
pub(crate) fn is_https<'a>(
    x_forwarded_proto: impl Iterator<Item = &'a [u8]>,
    forwarded: impl Iterator<Item = &'a [u8]>,
) -> bool {
    let text = |value: &'a [u8]| std::str::from_utf8(value).unwrap_or("unknown");
    let of_list = x_forwarded_proto.flat_map(move |value| text(value).split(','));
    let of_standard = forwarded.flat_map(move |value| split(text(value), ','));
    let of_standard = of_standard.filter_map(|element| parameter(element, "proto"));
    let mut stated = of_list.chain(of_standard).peekable();
    stated.peek().is_some() && stated.all(|scheme| scheme.trim().eq_ignore_ascii_case("https"))
}

/// Reads an address, with a port or without one; IPv6 may be in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| bracketed?.parse().ok().filter(IpAddr::is_ipv6))
}

/// Splits at `separator` outside of quotes.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(|c: char| {
        let is_end = c == separator && !is_quoted;
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        is_end
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(list: &[&str], standard: &[&str]) -> Option<String> {
        let trusted: Vec<NetworkPrefix> =
            ["10.0.0.0/8", "2001:db8:ffff::/48"].iter().map(|net| net.parse().unwrap()).collect();
        fn bytes<'a>(values: &'a [&str]) -> impl Iterator<Item = &'a [u8]> {
            values.iter().map(|value| value.as_bytes())
        }
        client(&trusted, bytes(list), bytes(standard)).map(|ip| ip.to_string())
    }

    #[test]
    fn a_client_used_https_where_every_statement_says_so() {
        fn bytes<'a>(values: &'a [&str]) -> impl Iterator<Item = &'a [u8]> {
            values.iter().map(|value| value.as_bytes())
        }
        for (list, standard, expected) in [
            (&["https"][..], &[][..], true),
            (&["HTTPS"], &["for=192.0.2.1"], true),
            (&[], &["for=192.0.2.1;proto=https"], true),
            (&[], &["for=192.0.2.1;proto=\"https\", for=10.0.0.1;proto=https"], true),
            (&[], &[], false),
            (&[], &["for=192.0.2.1"], false),
            (&["http"], &[], false),
            (&["https, http"], &[], false),
            (&["https", "http"], &[], false),
            (&["https"], &["for=192.0.2.1;proto=http"], false),
            (&["https"], &["for=192.0.2.1;proto=https, proto=http"], false),
            (&[""], &[], false),
        ] {
            assert_eq!(is_https(bytes(list), bytes(standard)), expected, "{list:?} {standard:?}");
        }
        assert!(!is_https([&b"\xff"[..]].into_iter(), [].into_iter()));
    }

    #[test]
    fn the_rightmost_address_that_is_not_a_trusted_proxy_is_the_client() {
        for (list, client) in [
            (&["192.0.2.1"][..], Some("192.0.2.1")),
            (&["192.0.2.1, 198.51.100.7"], Some("198.51.100.7")),
            (&["192.0.2.1,198.51.100.7 , 10.1.2.3"], Some("198.51.100.7")),
            (&["192.0.2.1", "198.51.100.7, 10.0.0.9"], Some("198.51.100.7")),
            (&["192.0.2.1, 10.0.0.9", "2001:db8:ffff::1"], Some("192.0.2.1")),
            (&["192.0.2.1:4000"], Some("192.0.2.1")),
            (&["[2001:db8::7]:4000"], Some("2001:db8::7")),
            (&["[2001:db8::7]"], Some("2001:db8::7")),
            (&["2001:db8::7"], Some("2001:db8::7")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (&["192.0.2.1, ::ffff:10.0.0.1"], Some("192.0.2.1")),
            (&["10.0.0.1, 10.0.0.2"], None),
            (&["192.0.2.1, unknown"], None),
            (&["192.0.2.1, unknown, 198.51.100.7"], Some("198.51.100.7")),
            (&["192.0.2.1,"], None),
            (&[""], None),
            (&["192.0.2.1\"]"], None),
        ] {
            assert_eq!(named(list, &[]).as_deref(), client, "{list:?}");
        }
    }

    #[test]
    fn the_forwarded_header_is_parsed_with_quotes() {
        for (standard, client) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", Some("192.0.2.60")),
            ("For=\"[2001:db8:cafe::17]:4711\"", Some("2001:db8:cafe::17")),
            ("for=192.0.2.1, for=198.51.100.7;proto=https", Some("198.51.100.7")),
            ("for=198.51.100.7, by=\"a,b;\\\" for=192.0.2.1\";for=\"10.0.0.1\"", Some("198.51.100.7")),
            ("for=192.0.2.1, for=_hidden", None),
            ("proto=https", None),
            ("for=\"192.0.2.1", None),
        ] {
            assert_eq!(named(&[], &[standard]).as_deref(), client, "{standard}");
        }
    }

    #[test]
    fn headers_that_disagree_are_ignored() {
        assert_eq!(named(&["192.0.2.1"], &["for=192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(named(&["192.0.2.1"], &["for=198.51.100.7"]), None);
        assert_eq!(named(&["192.0.2.1"], &["for=unknown"]), None);
        assert_eq!(named(&[], &[]), None);
    }

    proptest! {
        #[test]
        fn a_trusted_proxy_is_never_the_client(list in "[0-9a-f:.,\\[\\]\" ]{0,40}", standard in "(for=)?[0-9a-f:.,;=\\\\\" ]{0,40}") {
            if let Some(ip) = named(&[&list], &[&standard]).or_else(|| named(&[&list], &[])).or_else(|| named(&[], &[&standard])) {
                prop_assert!(!ip.starts_with("10."));
            }
        }

        #[test]
        fn elements_that_the_client_sent_are_ignored(own in "\\PC{0,60}") {
            let seen = format!("{own}, 198.51.100.7");
            let client = named(&[&seen], &[]);
            prop_assert_eq!(client.as_deref(), Some("198.51.100.7"));
        }
    }
}
