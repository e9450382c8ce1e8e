//! What an agent says to the daemons of a node, and what these keep in files for themselves: lines of JSON.

use nuage_block::Geometry;
use nuage_scsi::Server;

#[path = "../../../nuage-storaged/src/control/mod.rs"]
#[allow(dead_code, unused_imports)]
mod requests;

#[path = "../../../nuage-relay/src/orders.rs"]
#[allow(dead_code)]
mod orders;

const REQUESTS: &[&str] = &[
    r#"{"id": 1, "op": "create_volume", "volume": "v", "size_bytes": 1048576, "uuid": "00112233445566778899aabbccddeeff",
        "retention": {"seconds": 9, "bytes": 9, "strict": true}, "encrypted": true, "disk": "d", "joins": true, "epoch": 3}"#,
    r#"{"id": 2, "op": "at", "volume": "v", "moment": {"time_us": 17}, "view": "w"}"#,
    r#"{"id": [3], "op": "rollback", "volume": "v", "moment": {"mark": "before"}, "force": true}"#,
    r#"{"id": "x", "op": "clone", "volume": "v", "moment": {"sequence": 4}, "into": "w"}"#,
    r#"{"id": 4, "op": "set_key", "key": "00", "earlier": ["11"]}"#,
    r#"{"id": 5, "op": "write", "volume": "v", "offset": 0, "data": "00ff"}"#,
    r#"{"id": 6, "op": "open_head", "volume": "v", "epoch": 1, "name": "iqn.x:v", "replicas": []}"#,
    r#"{"id": 7, "op": "set_port_groups", "volume": "v", "own": 1, "groups": []}"#,
    r#"{"id": 8, "op": "list"}"#,
    r#"{"ways": {"10.0.0.1:2": {"address": "10.0.0.2:3", "node": "io1"}}, "patient": ["10.0.0.1:2"]}"#,
];

/// A line is understood or refused with a reason that tells no secret; whatever else there is, is refused.
pub fn run(bytes: &[u8]) {
    match requests::parse(bytes) {
        Ok(envelope) => {
            let answer = requests::answer(&envelope.id, Ok(serde_json::Value::Null));
            assert!(!answer.contains(&b'\n'), "an answer is one line");
        }
        Err((id, refusal)) => {
            let answer = requests::answer(&id, Err(refusal));
            assert!(!answer.contains(&b'\n'), "an answer is one line");
        }
    }
    let _ = serde_json::from_slice::<orders::Orders>(bytes);
    let _ = serde_json::from_slice::<requests::CreateVolume>(bytes);
    // Reservations as the journal hands them back.
    let geometry = Geometry {
        size_bytes: 1 << 20,
        logical_block_bytes: 512,
        uuid: [1; 16],
        name: "v".into(),
        read_only: false,
        write_cache: true,
    };
    let mut server = Server::new(1, Vec::new());
    assert!(server.add_target(1, "iqn.x:v", geometry, nuage_scsi::Access::default()));
    if let Some(unit) = server.unit_mut(1) {
        unit.load_reservations(bytes, bytes.len().is_multiple_of(2));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = REQUESTS
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    let registration = [&[0; 6][..], &7u64.to_be_bytes(), &[3], b"iqn"].concat();
    seeds.push([&[1, 1, 0, 0, 0, 1, 3, 0, 0, 0, 1][..], &registration].concat());
    seeds
}
