//! From where iSCSI is taken in clear: an IO-node's own site. Others come over TLS ([`crate::tls`]).
//!
//! The file that says so is the agent's. It is read anew for each connection, which are few; where it
//! cannot be read, nobody is let in from another machine.

use crate::log;
use std::net::IpAddr;
use std::path::PathBuf;

/// Longest file: a site of ten thousand nodes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// An address and how many of its bits count, `ADDRESS/BITS`; one address alone without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then_some(Self { address, bits })
    }

    fn holds(self, address: IpAddr) -> bool {
        let differ = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                u128::from(ours.to_bits() ^ theirs.to_bits()) << 96
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.to_bits() ^ theirs.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.bits
    }
}

/// The rule of one daemon.
#[derive(Debug, Default)]
pub struct ClearFrom {
    /// `None`: from everywhere.
    file: Option<PathBuf>,
}

impl ClearFrom {
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    /// Tell whether somebody at `peer` may speak in clear; the machine itself always may.
    pub fn admits(&self, peer: IpAddr) -> bool {
        let Some(file) = &self.file else { return true };
        if peer.to_canonical().is_loopback() {
            return true;
        }
        let read = std::fs::metadata(file).and_then(|found| {
            if found.len() > FILE_BYTES_MAX {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            std::fs::read_to_string(file)
        });
        match read {
            Ok(text) => text
                .lines()
                .filter_map(|line| Network::parse(line.trim()))
                .any(|network| network.holds(peer)),
            Err(error) => {
                log::error(
                    "clear_from_not_read",
                    &[("error", error.to_string().into())],
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(text: &str, peer: &str) -> bool {
        let peer: IpAddr = peer.parse().expect("a test gives addresses");
        text.lines()
            .filter_map(Network::parse)
            .any(|network| network.holds(peer))
    }

    #[test]
    fn a_site_is_its_networks_and_its_nodes() {
        let site = "10.71.1.0/24\nnonsense\n10.71.9.7\n2001:db8:1::/48";
        for near in [
            "10.71.1.20",
            "10.71.9.7",
            "::ffff:10.71.1.3",
            "2001:db8:1:2::1",
        ] {
            assert!(admits(site, near), "{near}");
        }
        for far in [
            "10.71.2.20",
            "10.71.9.8",
            "::ffff:10.71.2.3",
            "2001:db8:2::1",
        ] {
            assert!(!admits(site, far), "{far}");
        }
        assert!(admits("0.0.0.0/0", "192.0.2.1"));
        assert!(!admits("10.0.0.0/33", "10.0.0.0"));
    }

    #[test]
    fn without_a_file_nobody_comes_from_elsewhere() {
        let lost = ClearFrom::new(Some("/does/not/exist".into()));
        assert!(lost.admits("127.0.0.1".parse().expect("an address")));
        assert!(!lost.admits("10.0.0.1".parse().expect("an address")));
        let open = ClearFrom::default();
        assert!(open.admits("10.0.0.1".parse().expect("an address")));
    }
}
