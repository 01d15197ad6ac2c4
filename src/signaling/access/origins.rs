//! The allowed origins of pages. A browser sends the origin of a page ([RFC 6454](https://www.rfc-editor.org/rfc/rfc6454#section-7)), and the page
//! cannot change it. Other programs can send any origin.

/// Allowed origins; default all.
#[derive(Debug, Clone, Default)]
pub struct Origins(Option<Vec<String>>);

impl Origins {
    /// Parses a list of origins, each `scheme://host[:port]` as browsers write it.
    #[must_use]
    pub fn only(list: Vec<String>) -> Option<Self> {
        list.iter().all(|origin| is_origin(origin)).then_some(Self(Some(list)))
    }

    /// Returns whether all origins are allowed.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    /// Returns whether this origin is allowed.
    #[must_use]
    pub fn hold(&self, origin: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|list| list.iter().any(|known| known.as_bytes() == origin))
    }
}

/// Returns whether a text has the form of an origin: lower case, no path, no default port.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let spoken = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]+".contains(&byte);
    let needless = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "://",
    };
    !scheme.is_empty()
        && !host.is_empty()
        && scheme.bytes().chain(host.bytes()).all(spoken)
        && !host.ends_with(needless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_must_match_exactly_unless_all_are_allowed() {
        assert!(Origins::default().hold(b"https://anywhere.example") && Origins::default().are_all());
        let list = ["https://app.example", "http://localhost:8080", "capacitor://localhost"];
        let origins = Origins::only(list.map(str::to_owned).to_vec()).unwrap();
        assert!(list.iter().all(|origin| origins.hold(origin.as_bytes())) && !origins.are_all());
        for other in
            ["https://app.example.evil.example", "http://app.example", "https://app.example:8443", "null", ""]
        {
            assert!(!origins.hold(other.as_bytes()), "{other}");
        }
        assert!(
            !Origins::only(Vec::new()).unwrap().hold(b"https://app.example"),
            "an empty list lets no page in"
        );
    }

    #[test]
    fn an_origin_that_no_browser_sends_is_rejected() {
        for wrong in [
            "app.example",
            "https://",
            "https://app.example/",
            "https://App.example",
            "https://app.example:443",
            "http://app.example:80",
            "*",
            "https://*.example",
            "null",
            "",
        ] {
            assert!(Origins::only(vec![wrong.to_owned()]).is_none(), "{wrong}");
        }
    }
}
