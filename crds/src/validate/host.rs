//! Hosts that a manifest may lead a client to. What a cloud tells a machine about itself, its credentials among it, lies at an address
//! of the link; whoever may choose an endpoint must not be able to ask there, in whatever way the address is written. A DNS name that
//! somebody lets point there cannot be known here: that is for the network's own rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::diagnostic::{Code, Diagnostic};

/// Why a client is not led to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no host.
    Malformed,
    /// It tells a machine about itself.
    Metadata,
}

const METADATA_NAMES: [&str; 6] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "instance-data",
    "instance-data.ec2.internal",
];

/// Addresses outside of the link under which clouds answer the same questions.
const METADATA_ADDRESSES: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// What is wrong with a host, as it stands between `//` and the port.
pub(super) fn refusal(host: &str) -> Option<Refusal> {
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(address) if is_metadata(IpAddr::V6(address)) => Some(Refusal::Metadata),
            Ok(_) => None,
            Err(_) => Some(Refusal::Malformed),
        };
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    // Anything else is decoded or mapped by some client: %31, full-width digits, ideographic stops.
    if host.is_empty() || host.len() > 253 || !host.chars().all(fits) || host.contains("..") {
        return Some(Refusal::Malformed);
    }
    if METADATA_NAMES.contains(&host.as_str())
        // Names that carry an address, 169.254.169.254.nip.io and its like.
        || host.contains("169.254.")
        || host.contains("169-254-")
    {
        return Some(Refusal::Metadata);
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    let numeric = last.chars().all(|c| c.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.chars().all(|c| c.is_ascii_hexdigit()));
    if !numeric {
        return None;
    }
    match ipv4(&host) {
        None => Some(Refusal::Malformed),
        Some(address) if is_metadata(IpAddr::V4(address)) => Some(Refusal::Metadata),
        Some(_) => None,
    }
}

/// As `inet_aton` and browsers read it: one to four parts, decimal, octal (`0`) or hexadecimal (`0x`), the last filling the rest.
fn ipv4(host: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = host.split('.').map(number).collect::<Option<_>>()?;
    let (last, front) = parts.split_last()?;
    if front.len() > 3 || front.iter().any(|part| *part > 255) {
        return None;
    }
    let rest = 4 - front.len();
    if *last >= 1 << (8 * rest) {
        return None;
    }
    let front = front.iter().enumerate();
    let high: u64 = front.map(|(i, part)| part << (8 * (3 - i))).sum();
    u32::try_from(high + last).ok().map(Ipv4Addr::from)
}

fn number(part: &str) -> Option<u64> {
    if let Some(hex) = part.strip_prefix("0x") {
        return if hex.is_empty() {
            Some(0)
        } else {
            u64::from_str_radix(hex, 16).ok()
        };
    }
    match part.strip_prefix('0') {
        Some("") => Some(0),
        Some(octal) => u64::from_str_radix(octal, 8).ok(),
        None => part.parse().ok(),
    }
}

fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || METADATA_ADDRESSES.contains(&v4)
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            let low = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
            // Mapped and compatible addresses, and those behind the well-known prefix of NAT64.
            let carries_v4 = s[..5] == [0; 5] && matches!(s[5], 0 | 0xffff)
                || s[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
            let six_to_four = Ipv4Addr::from((u32::from(s[1]) << 16) | u32::from(s[2]));
            v6.is_unicast_link_local()
                || v6.is_multicast()
                || s[..2] == [0xfd00, 0x0ec2]
                || carries_v4 && is_metadata(IpAddr::V4(low))
                || s[0] == 0x2002 && is_metadata(IpAddr::V4(six_to_four))
        }
    }
}

/// The URL of a server: a scheme, a host, a port and a path, and nothing that would lead a client elsewhere.
pub(super) fn endpoint(url: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    let not_a_url = |help: &str| {
        let message = format!("{url:?} is not a URL");
        Diagnostic::error(Code::PATTERN, path, message).with_help(help)
    };
    let Some(rest) = ["http://", "https://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
    else {
        faults.push(not_a_url("it begins with http:// or https://"));
        return;
    };
    let (authority, below) = rest.split_once('/').unwrap_or((rest, ""));
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '\\');
    if rest.contains(strange) || authority.contains('@') || climbs(below) {
        let help = "write http://host:port/path, without a user, a query, a fragment or ..";
        faults.push(not_a_url(help));
        return;
    }
    let (host, port) = match authority.rsplit_once(':') {
        // A colon within the brackets of an IPv6 address is not that of a port.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if port.is_some_and(|port| !is_port(port)) {
        faults.push(not_a_url("a port is a number from 1 to 65535"));
        return;
    }
    match refusal(host) {
        None => {}
        Some(Refusal::Malformed) => faults.push(not_a_url("the host is a name or an address")),
        Some(Refusal::Metadata) => faults.push(metadata(path)),
    }
}

/// Whether a text is a port.
pub(super) fn is_port(port: &str) -> bool {
    port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// What is said of a metadata endpoint.
pub(super) fn metadata(path: &str) -> Diagnostic {
    Diagnostic::error(
        Code::PROPERTY_REFUSED,
        path,
        "a metadata endpoint is refused",
    )
}

/// Whether a path leads up or stays where it is by a segment of dots.
pub(super) fn climbs(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_link_is_known_in_every_spelling() {
        for host in [
            "169.254.169.254",
            "169.254.169.254.",
            "2852039166",
            "0xA9FEA9FE",
            "0xa9.0xfe.0xa9.0xfe",
            "0251.0376.0251.0376",
            "169.16689662",
            "169.254.43518",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[::169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "100.100.100.200",
            "Metadata.Google.Internal",
            "169.254.169.254.nip.io",
            "169-254-169-254.nip.io",
        ] {
            assert_eq!(refusal(host), Some(Refusal::Metadata), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_and_what_is_one_is_not() {
        for host in [
            "",
            "%31%36%39.254.169.254",
            "１６９.254.169.254",
            "169。254。169。254",
            "a b",
            "x@y",
            "256.1.1.1",
            "1.2.3.4.5",
            "[fe80::1%25eth0]",
            "[x]",
            "a..b",
            "zero\u{200b}width",
        ] {
            assert_eq!(refusal(host), Some(Refusal::Malformed), "{host:?}");
        }
        for host in [
            "kafka",
            "kafka-0.kafka.svc.cluster.local",
            "broker_1",
            "10.0.0.1",
            "127.0.0.1",
            "[2001:db8::1]",
            "s3.eu-central-1.amazonaws.com",
            "0xdead.example",
        ] {
            assert_eq!(refusal(host), None, "{host}");
        }
    }

    #[test]
    fn a_url_leads_to_its_host_and_nowhere_else() {
        let told = |url: &str| {
            let mut faults = Vec::new();
            endpoint(url, "endpoint", &mut faults);
            faults.first().map(|fault| fault.code)
        };
        for url in [
            "http://minio:9000",
            "https://s3.example.com/tenant",
            "http://[2001:db8::1]:9000",
        ] {
            assert_eq!(told(url), None, "{url}");
        }
        for url in [
            "ftp://x",
            "http://",
            "http://user@host",
            "http://host#.amazonaws.com",
            "http://host?x",
            "http://host\\@other",
            "http://host/../up",
            "http://host:0",
            "http://host:+80",
        ] {
            assert_eq!(told(url), Some(Code::PATTERN), "{url}");
        }
        let metadata = told("http://2852039166/latest/meta-data");
        assert_eq!(metadata, Some(Code::PROPERTY_REFUSED));
    }
}
