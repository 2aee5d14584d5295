//! The address of the client behind a proxy.
//!
//! Invariant: a header is believed only as far as it was written by a proxy that the operator named. Whoever else sends
//! one speaks for themselves, under the address that they come from.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies between the clients and this server that are looked back through.
const HOPS_MAX: usize = 32;

/// Which header the proxies write. Only one is read: a proxy lets the other one through as the client sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    Forwarded,
}

impl FromStr for ProxyHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            _ => Err("is x-forwarded-for or forwarded".to_owned()),
        }
    }
}

/// The proxies that the operator named.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    networks: Vec<IpNet>,
    header: ProxyHeader,
}

/// A network such as `10.0.0.0/8`, or one address.
///
/// # Errors
/// A sentence for people.
pub fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let address = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map(|network| network.trunc())
        .map_err(|_| format!("`{text}` is neither an address nor a network such as 10.0.0.0/8"))
}

impl Proxies {
    /// Proxies in these networks, which write this header.
    #[must_use]
    pub fn new(networks: Vec<IpNet>, header: ProxyHeader) -> Self {
        Self { networks, header }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Who sent a request that came from `peer`: the last address on its way that is not one of the proxies'. Where the
    /// way is lost (no header, or one that cannot be read), it is the last address known.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let name = match self.header {
            ProxyHeader::XForwardedFor => &X_FORWARDED_FOR,
            ProxyHeader::Forwarded => &header::FORWARDED,
        };
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        let hops = lines.iter().rev().flat_map(|line| {
            let line = line.to_str().unwrap_or_default();
            let mut hops = elements(line);
            hops.reverse();
            hops
        });
        for hop in hops.take(HOPS_MAX) {
            let address = match self.header {
                ProxyHeader::XForwardedFor => node(hop),
                ProxyHeader::Forwarded => forwarded_for(hop).and_then(|value| node(&value)),
            };
            let Some(address) = address else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// What stands between the commas, those in quotation marks left alone.
fn elements(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let mut escaped = false;
    line.split(|character| {
        let separates = character == ',' && !quoted;
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        separates
    })
    .map(str::trim)
    .collect()
}

/// The `for` of one element such as `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<Cow<'_, str>> {
    let mut found = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = found.next()?;
    if found.next().is_some() {
        return None;
    }
    match value.strip_prefix('"') {
        None => Some(value.into()),
        Some(rest) => rest.strip_suffix('"').map(|inner| inner.replace('\\', "").into()),
    }
}

/// An address, with a port or without.
fn node(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text).parse::<IpAddr>();
    let address = text.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| bare());
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: ProxyHeader, peer: &str, lines: &[(&str, &str)]) -> String {
        let networks = ["10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48"].map(|text| network(text).unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Proxies::new(networks.to_vec(), header).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxys_counts() {
        for (peer, lines, expected) in [
            // Nobody else is believed.
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("192.0.2.2", &["198.51.100.1"], "192.0.2.2"),
            ("10.1.2.3", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.1.2.3", &["198.51.100.1"], "198.51.100.1"),
            ("192.0.2.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("2001:db8:1::7", &["[2001:db8:2::1]:443"], "2001:db8:2::1"),
            ("10.0.0.1", &["2001:db8:2::1"], "2001:db8:2::1"),
            // What the client itself wrote stands before what the proxies added.
            ("10.0.0.1", &["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["127.0.0.1", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.0.0.2,10.0.0.3"], "198.51.100.1"),
            // Where the way is lost.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, nonsense, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1,"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            let lines: Vec<(&str, &str)> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(client(ProxyHeader::XForwardedFor, peer, &lines), expected, "{peer} {lines:?}");
        }
        let long = vec!["10.0.0.9"; 100].join(",");
        let line = format!("198.51.100.1,{long}");
        assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &line)]), "10.0.0.9");
    }

    #[test]
    fn the_standard_header_is_read_when_the_proxies_write_it() {
        for (line, expected) in [
            ("for=198.51.100.1", "198.51.100.1"),
            ("For=\"198.51.100.1:80\";proto=https", "198.51.100.1"),
            ("proto=https; for=\"[2001:db8:2::1]:4711\"", "2001:db8:2::1"),
            ("for=1.1.1.1, for=198.51.100.1;by=10.0.0.1, for=10.0.0.2", "198.51.100.1"),
            ("for=\"a,b\", for=198.51.100.1", "198.51.100.1"),
            ("for=\"a, for=198.51.100.1", "10.0.0.1"),
            ("for=_hidden", "10.0.0.1"),
            ("for=198.51.100.1;for=198.51.100.2", "10.0.0.1"),
            ("198.51.100.1", "10.0.0.1"),
        ] {
            assert_eq!(client(ProxyHeader::Forwarded, "10.0.0.1", &[("forwarded", line)]), expected, "{line}");
        }
    }

    #[test]
    fn the_header_that_the_proxies_do_not_write_is_not_read() {
        let both = [("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "198.51.100.2")];
        assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &both), "198.51.100.2");
        assert_eq!(client(ProxyHeader::Forwarded, "10.0.0.1", &both), "198.51.100.1");
        assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &both[..1]), "10.0.0.1");
    }

    #[test]
    fn networks_are_read() {
        for (text, expected) in [("10.1.2.3/8", "10.0.0.0/8"), (" 192.0.2.1 ", "192.0.2.1/32"), ("::1", "::1/128")] {
            assert_eq!(network(text).unwrap().to_string(), expected);
        }
        for text in ["", "10.0.0.0/33", "proxy.example", "10.0.0.1/x"] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
