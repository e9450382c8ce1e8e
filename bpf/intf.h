/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the kernel programs and user space share: map values, keys, limits, counters.
 *
 * Mirrored in crates/nuage-bpf/src/intf.rs and python/nuage/network/kernel_tables.py; sizes are
 * asserted in all three. Change a struct, an enum or a map: raise INTF_VERSION, which names the
 * directory that maps are pinned in, so that old and new never share one.
 *
 * Numbers are in host order unless the name ends in _be. Addresses of IPv4 fill the first four
 * bytes of the sixteen; `family` (4 or 6) says which it is.
 */
#ifndef NUAGE_INTF_H
#define NUAGE_INTF_H

#include <linux/bpf.h>
#include <linux/types.h>

#define INTF_VERSION 9

#define MAC_BYTES 6
#define ECMP_MAX 8		/* forwarding.ECMP_MAX */
#define TRUNKS_MAX 64		/* a bit each in tree and prune entries */
#define PORTS_MAX 4096		/* trunks and access ports of one node */
#define FLOOD_MAX 512		/* ports of one segment on one node */
#define RULES_MAX 256		/* security_group.RULES_PER_PORT_MAX */
#define RLOCS_MAX 8
#define FLOWS_PER_PORT_MAX 4096	/* a table of each filtered port: no guest fills another's */
#define LEARNED_MAX 65536
#define LEARNED_PER_PORT_MAX 128	/* of an unguarded access port */
#define ECHO_BYTES 16		/* echo.ECHO_BYTES */
#define AGE_MAX_NS (300ULL * 1000000000ULL)

enum port_flag {
	PORT_TRUNK = 1,
	PORT_GUARDED = 2,
	PORT_FILTERED = 4,
	PORT_ADJACENT = 8,	/* `neighbour` is in state Report */
	PORT_XDP = 16,		/* xdp_trunk is on it: it sends what XDP redirects */
};

/* Counters: the order of forwarding.Drop, then the sums of forwarding.PlaneCounters. */
enum counter {
	DROP_SHORT, DROP_VERSION, DROP_OUTER_DESTINATION, DROP_NO_ADJACENCY, DROP_OPTIONS,
	DROP_INGRESS, DROP_OWN_INGRESS, DROP_HOP_COUNT, DROP_NO_ROUTE, DROP_UNKNOWN_TREE,
	DROP_NOT_TREE_PORT, DROP_RPF, DROP_INNER, DROP_LABEL, DROP_NO_PORT, DROP_SPOOFED,
	DROP_RATE, DROP_BRIDGE_CONTROL, DROP_NATIVE, DROP_NO_NICKNAME, DROP_NO_MAPPING,
	DROP_LISP, DROP_POLICY, DROP_TREE_REST,
	SUM_INGRESS = 32, SUM_TRANSIT, SUM_EGRESS, SUM_FLOODED, SUM_PUNTED, SUM_ENCAPSULATED,
	SUM_DECAPSULATED, SUM_STRAYS, SUM_ANSWERED, SUM_KERNEL_REFUSED, SUM_INTO_TUNNEL,
	SUM_OUT_OF_TUNNEL,
	COUNTERS_MAX = 64,
};

/* self_entry[0]: who we are. nickname 0: none yet; tree 0: none yet. */
struct self_value {
	__u16 nickname;
	__u16 tree;
};
_Static_assert(sizeof(struct self_value) == 4, "self_value");

/* ports[interface index] for frames that come and go, places[port number] to find a way out. */
struct port_value {
	__u32 ifindex;		/* 0: not bound to an interface */
	__u32 label;
	__u64 rate_bits_per_s;	/* 0: no limit; of a trunk: IS-IS of strangers (trunk.h) */
	__u32 burst_bytes;
	__u16 number;
	__u16 mtu_bytes;
	__u8 mac[MAC_BYTES];	/* ours on a trunk, the guest's on an access port */
	__u8 neighbour[MAC_BYTES];
	__u8 flags;
	__u8 slot;		/* of a trunk */
	__u16 generation;	/* of the port's rules; they are written before it */
};
_Static_assert(sizeof(struct port_value) == 40, "port_value");

/* The interface below a trunk's VXLAN port, a tunnel's or the rack's, and the VNI on it. */
struct tunnel_key {
	__u32 ifindex;		/* 0: the trunk has only its own way */
	__u32 vni;
};
_Static_assert(sizeof(struct tunnel_key) == 8, "tunnel_key");

/* slots[slot]: the trunks by the bit that stands for them. ifindex 0: not there. */
struct slot_value {
	__u32 ifindex;
	__u16 number;
	__u8 mac[MAC_BYTES];
	struct tunnel_key tunnel;
};
_Static_assert(sizeof(struct slot_value) == 20, "slot_value");

/* tunnels[interface, VNI]: what the trunk's VXLAN port makes of a frame (tunnel.h) */
struct tunnel_value {
	struct tunnel_key key;	/* again */
	__u32 number;		/* the trunk */
	__u32 here;		/* addresses of the outer IP header, big-endian */
	__u32 there;
	__u16 udp_port;
	__u16 mtu_bytes;	/* of the interface: what is longer IP cuts */
	__u32 is_ethernet;	/* the rack's: it has neighbours, a tunnel has none */
};
_Static_assert(sizeof(struct tunnel_value) == 28, "tunnel_value");

/* fib[nickname]: `count` equal paths, then backups up to `total`, for when none of those is left */
struct hop_value {
	__u8 dmac[MAC_BYTES];
	__u8 smac[MAC_BYTES];
	__u16 slot;
};
struct fib_value {
	__u8 count;
	__u8 total;
	struct hop_value hops[ECMP_MAX];
};
_Static_assert(sizeof(struct fib_value) == 114, "fib_value");

/* rpf[tree, ingress] -> slot; RPF_REST: by none, between two trees (applied_table.py) */
#define RPF_REST 0xFFFFFFFF
struct rpf_key {
	__u16 tree;
	__u16 ingress;
};
_Static_assert(sizeof(struct rpf_key) == 4, "rpf_key");

/* prunes[tree, label] -> bits of slots; label 0: who wants every label */
struct prune_key {
	__u32 tree;
	__u32 label;
};
_Static_assert(sizeof(struct prune_key) == 8, "prune_key");

/* floods[label]: the access ports here */
struct flood_value {
	__u32 count;
	__u16 ports[FLOOD_MAX];
};
_Static_assert(sizeof(struct flood_value) == 1028, "flood_value");

/* directory[label, mac] (written by user space) and learned[label, mac] (by the programs) */
struct station_key {
	__u32 label;
	__u8 mac[MAC_BYTES];
	__u8 pad[2];
};
struct station_value {
	__u16 nickname;
	__u16 port;
	__u32 pad;
	__u64 seen_ns;		/* CLOCK_MONOTONIC, coarse */
};
_Static_assert(sizeof(struct station_key) == 12, "station_key");
_Static_assert(sizeof(struct station_value) == 16, "station_value");

/* guards[port, address] -> 1: a source that a guarded port may use */
struct guard_key {
	__u16 port;
	__u8 family;
	__u8 pad;
	__u32 address[4];
};
_Static_assert(sizeof(struct guard_key) == 20, "guard_key");

/* rules[port] */
enum direction { TO_GUEST = 0, FROM_GUEST = 1 };
struct rule_value {
	__u8 used;
	__u8 direction;
	__u8 protocol;		/* 0: any */
	__u8 family;		/* 0: any address of both */
	__u16 first;
	__u16 last;
	__u32 address[4];
	__u32 mask[4];
};
struct rules_value {
	__u32 count;		/* highest index in use + 1 */
	struct rule_value rules[RULES_MAX];
};
_Static_assert(sizeof(struct rule_value) == 40, "rule_value");
_Static_assert(sizeof(struct rules_value) == 10244, "rules_value");

/* flows[port] -> a table of flows: this key -> this value */
struct flow_key {
	__u32 guest[4];
	__u32 remote[4];
	__u16 guest_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 family;
	__u8 fragment;		/* 1: for all fragments of the protocol between the two */
	__u8 pad;
};
struct flow_value {
	__u64 seen_ns;
	__u16 generation;	/* of the rules that judged it last */
	__u8 opener;		/* enum direction: of its first frame */
	__u8 closed;		/* 1: those rules do not let it begin */
	__u8 pad[4];
};
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");
_Static_assert(sizeof(struct flow_value) == 16, "flow_value");

/* states[port]: what changes with each frame. Indexed by enum direction. */
struct state_value {
	struct bpf_spin_lock lock;
	__u32 learned_count;
	__u32 pad;
	__u32 since_s;		/* CLOCK_MONOTONIC: when the first flow was noted; 0: none was */
	__u64 tokens[2];
	__u64 stamp_ns[2];
};
_Static_assert(sizeof(struct state_value) == 48, "state_value");

/* neighbours[label, address] -> MAC: ARP and ND are answered from it (RFC 8302, 8171) */
struct neighbour_key {
	__u32 label;
	__u32 family;
	__u32 address[4];
};
struct neighbour_value {
	__u8 mac[MAC_BYTES];
	__u8 is_router;		/* says so in ND, or guests drop their default route */
	__u8 pad;
};
_Static_assert(sizeof(struct neighbour_key) == 24, "neighbour_key");
_Static_assert(sizeof(struct neighbour_value) == 8, "neighbour_value");

/* lisp_self[0]: this tunnel router. ifindex 0: there is none. */
#define LINES_MAX 4
#define LISP_ROUTED 1		/* the kernel's routes say by which interface to an RLOC */
#define LISP_OF_PORT 0xFFFFFFFF
struct lisp_self_value {
	__u32 ifindex;		/* the interface towards the other RLOCs */
	__u32 rloc;		/* big-endian, as on the wire: the source of what we send */
	__u8 router_mac[MAC_BYTES];	/* what guests send to when they mean us */
	__u8 flags;
	__u8 pad;
	__u32 instance;		/* of what guests send; LISP_OF_PORT: each port's label */
	__u32 lines[LINES_MAX];	/* RLOCs of ours besides, big-endian; 0: none */
};
_Static_assert(sizeof(struct lisp_self_value) == 36, "lisp_self_value");

/* gro_port[0]: where stripped TCP goes to be joined (deliver.h). ifindex 0: nowhere. */
struct gro_port_value {
	__u32 ifindex;
	__u32 queues;
};
_Static_assert(sizeof(struct gro_port_value) == 8, "gro_port_value");

/* Longest prefix of map_cache and eids: `bits` counts instance (32), family (8), address. */
struct eid_key {
	__u32 bits;
	__u8 instance_be[4];
	__u8 family;
	__u8 address[16];
	__u8 pad[3];
};
_Static_assert(sizeof(struct eid_key) == 28, "eid_key");
#define EID_HOST_BITS 168

struct rloc_value {
	__u32 address;		/* big-endian */
	__u16 priority;
	__u16 weight;
};
struct map_cache_value {
	__u16 count;
	__u16 action;		/* forwarding.MapAction, for count 0 */
	struct rloc_value rlocs[RLOCS_MAX];
};
_Static_assert(sizeof(struct map_cache_value) == 68, "map_cache_value");

struct eid_value {
	__u16 port;
	__u8 mac[MAC_BYTES];
	__u32 forward_to;	/* big-endian RLOC; 0: the EID is here */
	__u32 bits;		/* of its own prefix, for `heard` */
};
_Static_assert(sizeof(struct eid_value) == 16, "eid_value");

/* heard[eid prefix, rloc] -> ns first heard: who has the EID in its map-cache */
struct heard_key {
	struct eid_key eid;
	__u32 rloc;
};
_Static_assert(sizeof(struct heard_key) == 32, "heard_key");

/* echoes[port] : the last echo of ours that came back (echo.EchoWatch says what is in it) */
enum echo_way { ECHO_IN_TRUNK = 0, ECHO_ON_LINE = 1 };
struct echo_value {
	__u8 content[ECHO_BYTES];
	__u64 returned_ns;	/* CLOCK_MONOTONIC */
	__u32 way;
	__u32 pad;
};
_Static_assert(sizeof(struct echo_value) == 32, "echo_value");

/* lines[UDP port]: a tunnel whose echoes go beside it on the provider's line (line.h) */
struct line_value {
	__u32 number;		/* the trunk */
	__u32 end;		/* 0 or 1: which end of it we are */
	__u32 family;
	__u32 peer[4];		/* the only one whose echoes are answered */
};
_Static_assert(sizeof(struct line_value) == 28, "line_value");

/* The ring buffer `events`, and `recent` that keeps it quiet: one of a kind each EVENT_QUIET_NS. */
enum event_kind { EVENT_MISS = 1, EVENT_HEARD = 2, EVENT_STRAY = 3 };
#define EVENT_QUIET_NS (100ULL * 1000000ULL)
struct event_value {
	__u32 kind;
	__u32 rloc;		/* HEARD, STRAY: who sent it, big-endian */
	struct eid_key eid;	/* MISS: the destination; else the prefix of the EID */
	__u8 source[16];	/* MISS: the packet's source, of the same family */
};
_Static_assert(sizeof(struct event_value) == 52, "event_value");

#endif
