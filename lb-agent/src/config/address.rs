//! Addresses, names and other small texts that several tables share.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::reader::Field;

/// Reads `"ip:port"` or `"[ip]:port"` that packets can be forwarded to or taken from.
pub(super) fn socket_address(field: &Field<'_>, example: &str) -> Option<SocketAddr> {
    let address = any_socket_address(field, example)?;
    match unusable(address.ip()) {
        Some(what) => field.refuse(what, format!("write a unicast address, e.g. {example}")),
        None => return Some(address),
    }
    None
}

/// Like [`socket_address`], with loopback and unspecified addresses allowed.
pub(super) fn any_socket_address(field: &Field<'_>, example: &str) -> Option<SocketAddr> {
    let text = field.string(example)?;
    let remedy = format!("write e.g. {example}");
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V6(address)) if address.scope_id() != 0 => {
            field.refuse("has a zone, which belongs to link-local addresses", remedy);
        }
        Ok(address) if address.port() == 0 => {
            field.refuse("has port 0", "write a port from 1 to 65535")
        }
        Ok(address) => return Some(address),
        Err(_) => refuse_text(field, text, remedy),
    }
    None
}

fn refuse_text(field: &Field<'_>, text: &str, remedy: String) {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if let Ok(ip) = text.parse::<IpAddr>() {
        field.refuse(
            "has no port",
            format!("write e.g. {:?}", SocketAddr::new(ip, 9000).to_string()),
        );
    } else if is_host_name(host) {
        field.refuse("is a host name: names are not resolved", remedy);
    } else {
        field.refuse("is not an IP address and port", remedy);
    }
}

fn is_host_name(text: &str) -> bool {
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().all(label) && text.chars().any(|c| c.is_ascii_alphabetic())
}

/// Reads a plain IP address that packets can be sent from.
pub(super) fn ip_address(field: &Field<'_>, example: &str) -> Option<IpAddr> {
    let text = field.string(example)?;
    let remedy = format!("write e.g. {example}");
    let Ok(ip) = text.parse::<IpAddr>() else {
        let what = match text.parse::<SocketAddr>() {
            Ok(_) => "has a port",
            Err(_) if text.contains('/') => "has a prefix length",
            Err(_) => "is not an IP address",
        };
        field.refuse(what, remedy);
        return None;
    };
    if let Some(what) = unusable(ip) {
        field.refuse(what, format!("write a unicast address, e.g. {example}"));
        return None;
    }
    Some(ip)
}

/// Why packets to or from this address cannot be forwarded.
pub(crate) fn unusable(ip: IpAddr) -> Option<&'static str> {
    let (link_local, broadcast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.is_broadcast()),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            return Some("is an IPv4 address written as IPv6");
        }
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), false),
    };
    match ip {
        ip if ip.is_unspecified() => Some("is the unspecified address"),
        ip if ip.is_loopback() => Some("is a loopback address, which never reaches a NIC"),
        ip if ip.is_multicast() => Some("is a multicast address"),
        _ if broadcast => Some("is the broadcast address"),
        _ if link_local => Some("is a link-local address, which means another host on every link"),
        _ => None,
    }
}

/// `IPv4` or `IPv6`.
pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Reads a name that may stand in logs, metric labels and URLs: 1 to 63 of `A-Za-z0-9` and `extra`.
pub(super) fn name(field: &Field<'_>, extra: &str, example: &str) -> Option<String> {
    let text = field.string(example)?;
    if !is_name(text, extra) {
        let remedy = format!("write 1 to 63 letters, digits and {extra}, e.g. {example}");
        field.refuse("is not a name", remedy);
        return None;
    }
    Some(text.to_owned())
}

/// Whether it is 1 to 63 of `A-Za-z0-9` and `extra`.
pub(crate) fn is_name(text: &str, extra: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
    (1..=63).contains(&text.len()) && text.chars().all(allowed)
}

/// Reads a text of 1 to `most` bytes.
pub(super) fn text(field: &Field<'_>, most: usize, example: &str) -> Option<String> {
    let text = field.string(example)?;
    if text.is_empty() {
        field.refuse("is empty", format!("write e.g. {example}"));
    } else if text.len() > most {
        field.refuse(format!("is {} bytes long", text.len()), format!("write at most {most}"));
    } else {
        return Some(text.to_owned());
    }
    None
}

/// Reads the absolute path of a file. That it exists is not known here.
pub(super) fn absolute_path(field: &Field<'_>, example: &str) -> Option<PathBuf> {
    let path = field.string(example)?;
    if !path.starts_with('/') || path.contains('\0') {
        field.refuse("is not an absolute path", format!("write e.g. {example}"));
        return None;
    }
    Some(PathBuf::from(path))
}

/// Reads `"ip/length"`, or an address alone for itself.
pub(super) fn prefix(field: &Field<'_>, example: &str) -> Option<(IpAddr, u8)> {
    let text = field.string(example)?;
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, n)| (ip, Some(n)));
    let digits = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse::<u8>().ok())?;
    let parsed = ip.parse::<IpAddr>().ok().and_then(|ip| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Some(bits), digits).filter(|length| *length <= bits)?;
        Some((ip, length))
    });
    let Some((ip, length)) = parsed else {
        field.refuse("is not an address and prefix length", format!("write e.g. {example}"));
        return None;
    };
    let network = network(ip, length);
    if network != ip {
        field.refuse(
            format!("has bits beyond the prefix length {length}"),
            format!("write \"{network}/{length}\""),
        );
        return None;
    }
    Some((ip, length))
}

/// The first address of a prefix.
fn network(ip: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

/// Labels of letters, digits, `-` and `_`; the last is not a number, or it would be an IPv4 address.
pub(super) fn is_dns_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number =
        name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}
