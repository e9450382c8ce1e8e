//! Sizes of what the kernel programs and user space share (`bpf/intf.h`), mirrored.
//!
//! User space writes these values as bytes (`python/nuage/network/kernel_tables.py`); the loader
//! refuses an object whose maps have other sizes.

/// Names the directory that maps are pinned in: `v<number>`.
pub const INTF_VERSION: u32 = 9;
/// How many flows are kept open at one filtered port.
pub const FLOWS_PER_PORT_MAX: u32 = 4096;

/// Bytes of a key in such a table.
pub const FLOW_KEY_BYTES: u32 = 40;
/// Bytes of a value in it.
pub const FLOW_VALUE_BYTES: u32 = 16;

macro_rules! mirror {
    ($($name:ident: $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            /// The structure of this name in `bpf/intf.h`.
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name { $(pub $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

mirror! {
    SelfValue: 4 { nickname: u16, tree: u16 }
    PortValue: 40 {
        ifindex: u32, label: u32, rate_bits_per_s: u64, burst_bytes: u32, number: u16,
        mtu_bytes: u16, mac: [u8; 6], neighbour: [u8; 6], flags: u8, slot: u8, generation: u16,
    }
    TunnelKey: 8 { ifindex: u32, vni: u32 }
    SlotValue: 20 { ifindex: u32, number: u16, mac: [u8; 6], tunnel: TunnelKey }
    TunnelValue: 28 {
        key: TunnelKey, number: u32, here: u32, there: u32, udp_port: u16, mtu_bytes: u16,
        is_ethernet: u32,
    }
    HopValue: 14 { dmac: [u8; 6], smac: [u8; 6], slot: u16 }
    FibValue: 114 { count: u8, total: u8, hops: [HopValue; 8] }
    RpfKey: 4 { tree: u16, ingress: u16 }
    PruneKey: 8 { tree: u32, label: u32 }
    FloodValue: 1028 { count: u32, ports: [u16; 512] }
    StationKey: 12 { label: u32, mac: [u8; 6], pad: [u8; 2] }
    StationValue: 16 { nickname: u16, port: u16, pad: u32, seen_ns: u64 }
    GuardKey: 20 { port: u16, family: u8, pad: u8, address: [u32; 4] }
    RuleValue: 40 {
        used: u8, direction: u8, protocol: u8, family: u8, first: u16, last: u16,
        address: [u32; 4], mask: [u32; 4],
    }
    RulesValue: 10244 { count: u32, rules: [RuleValue; 256] }
    FlowKey: 40 {
        guest: [u32; 4], remote: [u32; 4], guest_port: u16, remote_port: u16, protocol: u8,
        family: u8, fragment: u8, pad: u8,
    }
    FlowValue: 16 { seen_ns: u64, generation: u16, opener: u8, closed: u8, pad: [u8; 4] }
    StateValue: 48 {
        lock: u32, learned_count: u32, pad: u32, since_s: u32, tokens: [u64; 2],
        stamp_ns: [u64; 2],
    }
    NeighbourKey: 24 { label: u32, family: u32, address: [u32; 4] }
    NeighbourValue: 8 { mac: [u8; 6], is_router: u8, pad: u8 }
    LispSelfValue: 36 {
        ifindex: u32, rloc: u32, router_mac: [u8; 6], flags: u8, pad: u8, instance: u32, lines: [u32; 4],
    }
    EidKey: 28 { bits: u32, instance_be: [u8; 4], family: u8, address: [u8; 16], pad: [u8; 3] }
    RlocValue: 8 { address: u32, priority: u16, weight: u16 }
    MapCacheValue: 68 { count: u16, action: u16, rlocs: [RlocValue; 8] }
    EidValue: 16 { port: u16, mac: [u8; 6], forward_to: u32, bits: u32 }
    HeardKey: 32 { eid: EidKey, rloc: u32 }
    EchoValue: 32 { content: [u8; 16], returned_ns: u64, way: u32, pad: u32 }
    GroPortValue: 8 { ifindex: u32, queues: u32 }
    LineValue: 28 { number: u32, end: u32, family: u32, peer: [u32; 4] }
    EventValue: 52 { kind: u32, rloc: u32, eid: EidKey, source: [u8; 16] }
}

const _: () = assert!(size_of::<FlowKey>() == FLOW_KEY_BYTES as usize);
const _: () = assert!(size_of::<FlowValue>() == FLOW_VALUE_BYTES as usize);

/// (map, bytes of a key, bytes of a value) of every map but the ring buffer and `flows`.
pub const LAYOUT: &[(&str, usize, usize)] = &[
    ("self_entry", 4, size_of::<SelfValue>()),
    ("ports", 4, size_of::<PortValue>()),
    ("places", 4, size_of::<PortValue>()),
    ("slots", 4, size_of::<SlotValue>()),
    ("fib", 4, size_of::<FibValue>()),
    ("trees", 4, 8),
    ("rpf", size_of::<RpfKey>(), 4),
    ("prunes", size_of::<PruneKey>(), 8),
    ("floods", 4, size_of::<FloodValue>()),
    (
        "directory",
        size_of::<StationKey>(),
        size_of::<StationValue>(),
    ),
    (
        "learned",
        size_of::<StationKey>(),
        size_of::<StationValue>(),
    ),
    ("guards", size_of::<GuardKey>(), 4),
    ("rules", 4, size_of::<RulesValue>()),
    ("states", 4, size_of::<StateValue>()),
    (
        "neighbours",
        size_of::<NeighbourKey>(),
        size_of::<NeighbourValue>(),
    ),
    ("lisp_self", 4, size_of::<LispSelfValue>()),
    ("map_cache", size_of::<EidKey>(), size_of::<MapCacheValue>()),
    ("eids", size_of::<EidKey>(), size_of::<EidValue>()),
    ("echoes", 4, size_of::<EchoValue>()),
    ("lines", 4, size_of::<LineValue>()),
    ("gro_port", 4, size_of::<GroPortValue>()),
    ("tunnels", size_of::<TunnelKey>(), size_of::<TunnelValue>()),
    ("heard", size_of::<HeardKey>(), 8),
    ("recent", size_of::<EventValue>(), 8),
    ("counters", 4, 8),
];
