//! The proxy that the environment names.

use super::error::UsageError;
use super::report::Reporter;
use crate::agent::ProxySettings;
use std::env;

/// Names of the variable of the proxy; the first one that is set and not empty counts.
const PROXY: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Returns the proxy settings of the environment.
pub(super) fn read() -> Result<ProxySettings, UsageError> {
    settings(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

/// Reports the proxy through which a host is reached.
pub(super) fn report(report: &Reporter, host: &str, port: u16) {
    if let Some(proxy) = read().ok().and_then(|settings| settings.proxy_of(host, port)) {
        report.note(&format!("TCP to {host} passes the proxy {proxy}"));
    }
}

fn settings(variable: impl Fn(&str) -> Option<String>) -> Result<ProxySettings, UsageError> {
    let first = |names: &[&'static str]| {
        let mut values = names.iter().map(|name| (*name, variable(name).unwrap_or_default()));
        values.find(|(_, value)| !value.trim().is_empty())
    };
    let Some((variable, proxy)) = first(&PROXY) else { return Ok(ProxySettings::default()) };
    let exceptions = first(&EXCEPTIONS).map(|(_, exceptions)| exceptions).unwrap_or_default();
    ProxySettings::new(&proxy, &exceptions).map_err(|source| UsageError::Proxy { variable, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_of(variables: &[(&str, &str)], host: &str) -> Result<Option<String>, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        settings(find).map(|settings| settings.proxy_of(host, 3478)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_proxy() {
        let https = ("HTTPS_PROXY", "http://a:1");
        let all = ("ALL_PROXY", "socks5://b:2");
        let a = Ok(Some("http://a:1".to_owned()));
        let b = Ok(Some("socks5://b:2".to_owned()));
        assert_eq!(proxy_of(&[], "h"), Ok(None));
        assert_eq!(proxy_of(&[https, all], "h"), a);
        assert_eq!(proxy_of(&[("https_proxy", ""), all], "h"), b);
        assert_eq!(proxy_of(&[("https_proxy", "a:1"), all], "h"), a);
        assert_eq!(proxy_of(&[https, ("NO_PROXY", "h.example")], "a.h.example"), Ok(None));
        assert_eq!(proxy_of(&[all, ("no_proxy", "x"), ("NO_PROXY", "h")], "h"), b);
        assert_eq!(proxy_of(&[("HTTP_PROXY", "http://a:1")], "h"), Ok(None));
        let wrong = proxy_of(&[("ALL_PROXY", "ftp://a")], "h");
        assert_eq!(wrong, Err("ALL_PROXY names no proxy".to_owned()));
    }
}
