//! What a host's record may hold.

use std::net::IpAddr;

use drover_kernel::{Error, Result, api_words};

api_words! {
    /// Kind of a host; the spellings are the interface's own.
    pub enum HostType {
        /// Alibaba Cloud.
        AliEcs = "ALI_ECS",
        /// Physical machine.
        PhyHost = "PHY_HOST",
        /// Tencent Cloud virtual machine.
        TecentCvm = "TECENT_CVM",
        /// Tencent Cloud bare-metal machine.
        TecentCpm = "TECENT_CPM",
        /// CloudStack cluster of production.
        Cloudstack = "CLOUDSTACK",
        /// CloudStack cluster of the office.
        CloudstackOffice = "CLOUDSTACK_OFFICE",
    }
}

api_words! {
    /// Management status of a host.
    pub enum HostStatus {
        /// Carries instances.
        Attached = "attached",
        /// Prepared, carries none.
        Inited = "inited",
        /// Known, not prepared.
        Raw = "raw",
        /// Out of service.
        Offline = "offline",
    }
}

api_words! {
    /// State of a host's operating system.
    pub enum OsStatus {
        /// Shut down.
        Stopped = "stopped",
        /// Up.
        Running = "running",
        /// On its way down and up again.
        Restarting = "restarting",
    }
}

api_words! {
    /// Reach of an address.
    pub enum AddressReach {
        /// Within a private network.
        Private = "PRIVATE",
        /// From everywhere.
        Public = "PUBLIC",
    }
}

api_words! {
    /// Kind of thing that an address is bound to.
    pub enum AddressOwner {
        /// A host.
        Host = "HOST",
        /// A load balancer.
        LoadBalancer = "LB",
    }
}

/// Addresses that one host may have.
pub const ADDRESSES_MAX: usize = 100;
const CORES_MAX: i64 = 100_000;
const MEMORY_MB_MAX: i64 = 1_000_000_000;

/// Checks a host's name.
///
/// # Errors
/// Names the field `name`.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("name", "must not be empty"));
    }
    if name.chars().any(|character| character.is_whitespace() || character.is_control() || character == '/') {
        return Err(Error::invalid("name", "must not contain blanks, control characters or slashes"));
    }
    Ok(())
}

/// Checks the number of cores and the memory in MB.
///
/// # Errors
/// Names the field.
pub fn check_size(cpu: i64, memory: i64) -> Result<()> {
    for (field, value, most) in [("cpu", cpu, CORES_MAX), ("memory", memory, MEMORY_MB_MAX)] {
        if !(0..=most).contains(&value) {
            return Err(Error::invalid(field, format!("must be a number from 0 to {most}")));
        }
    }
    Ok(())
}

/// Labels of one host.
const LABELS_MAX: usize = 50;

/// Checks the words by which a host is chosen.
///
/// # Errors
/// Names the field `labels`.
pub fn check_labels(labels: &[String]) -> Result<()> {
    let good = |character: char| character.is_ascii_alphanumeric() || "._-/=:".contains(character);
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid("labels", format!("must have at most {LABELS_MAX} elements")));
    }
    if labels.iter().any(|label| label.is_empty() || label.len() > 60 || !label.chars().all(good)) {
        let reason = "must be words of at most 60 letters, digits and the characters . _ - / = :";
        return Err(Error::invalid("labels", reason));
    }
    Ok(())
}

/// The address in its usual spelling.
///
/// # Errors
/// A reason for people.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "must be an IPv4 or IPv6 address".to_owned())
}

/// Checks a subnet mask: empty, an address, or the length of a prefix.
///
/// # Errors
/// A reason for people.
pub fn check_netmask(text: &str) -> Result<(), String> {
    let prefix = text.trim_start_matches('/').parse::<u8>().is_ok_and(|length| length <= 128);
    if text.is_empty() || prefix || text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err("must be a mask such as 255.255.255.0 or a prefix length".to_owned())
}

/// Reach of an address when nobody says: by the ranges that are set aside for private networks.
#[must_use]
pub fn reach(address: IpAddr) -> AddressReach {
    let private = match address {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    };
    if private { AddressReach::Private } else { AddressReach::Public }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_masks() {
        for (name, good) in [("web-1.example", true), ("", false), ("a b", false), ("a/b", false), ("a\u{7}", false)] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
        for (mask, good) in
            [("", true), ("255.255.0.0", true), ("/24", true), ("64", true), ("129", false), ("x", false)]
        {
            assert_eq!(check_netmask(mask).is_ok(), good, "{mask:?}");
        }
        assert!(check_size(0, 0).is_ok() && check_size(-1, 0).is_err() && check_size(0, i64::MAX).is_err());
    }

    #[test]
    fn reach_follows_the_ranges() {
        for (text, expected) in [
            ("10.1.2.3", AddressReach::Private),
            ("8.8.8.8", AddressReach::Public),
            ("fd00::1", AddressReach::Private),
            ("2001:db8::1", AddressReach::Public),
        ] {
            assert_eq!(reach(address(text).unwrap()), expected, "{text}");
        }
    }
}
