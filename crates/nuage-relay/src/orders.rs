//! What the V-node's agent says, a line of JSON each: all ways, every time.
//!
//! ```text
//! {"ways": {"10.1.2.120:21000": {"address": "10.1.2.120:21001", "node": "lyon-io1"}}, "patient": ["10.1.2.120:21000"]}
//! {"waiting": [40122]}
//! ```
//!
//! A way leads from the portal that an initiator asked for to where its head is: over TLS to the daemon of
//! a node, or in clear (no node) within the site. The answer names the local ports of those that wait.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    pub address: SocketAddr,
    /// Whose certificate it is to show; empty: it is near, and spoken to in clear.
    #[serde(default)]
    pub node: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    pub ways: BTreeMap<SocketAddr, Way>,
    /// Portals whose initiators rather wait than hear that nobody is there.
    pub patient: BTreeSet<SocketAddr>,
}

#[derive(Debug, Serialize)]
pub struct Answer {
    pub waiting: Vec<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_far_where_it_names_a_node() {
        let text = r#"{"ways": {"10.0.0.1:2": {"address": "10.0.0.2:3", "node": "lyon-io1"},
                        "10.0.0.1:4": {"address": "10.0.0.3:4"}}, "patient": ["10.0.0.1:2"]}"#;
        let orders: Orders = serde_json::from_str(text).expect("these are orders");
        let nodes: Vec<&str> = orders.ways.values().map(|way| way.node.as_str()).collect();
        assert_eq!(nodes, ["lyon-io1", ""]);
        assert!(serde_json::from_str::<Orders>(r#"{"ways": {}, "clear": true}"#).is_err());
    }
}
