/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * LISP (RFC 9300): packets to the router's MAC leave encapsulated by longest prefix; what comes
 * to UDP port 4341 is delivered to the EID here, or sent on to where it moved.
 *
 *   Ethernet | IPv4 20 | UDP 8 (4341, no checksum) | LISP 8 | IP packet of the guest
 *   LISP: N L E V I R KK, nonce:24 | instance-ID:24, status bits:8
 *
 * The instance-ID is the tenant's label, or one that the router was given: that of public
 * addresses, which all tenants share. The outer TTL is the inner one's, and one less for each
 * re-encapsulation, so two routers that each think the other has the EID do not loop for ever.
 */
#ifndef NUAGE_LISP_H
#define NUAGE_LISP_H

#include "gro.h"

#define LISP_DATA_PORT 4341
#define LISP_FLAG_NONCE 0x80
#define LISP_FLAG_VERSION 0x10
#define LISP_FLAG_INSTANCE 0x08
#define LISP_FLAG_KEYS 0x03
#define TUNNEL_BYTES 36
#define SOURCE_PORT_MIN 0xC000		/* RFC 9300 section 5.3: the flow's hash, as entropy */
#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV4
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif

struct tunnel {
	struct ethernet eth;
	struct ipv4 ip;
	__be16 source_port, destination_port, udp_bytes, udp_checksum;
	__u8 flags, nonce[3];
	__be32 instance;
} __attribute__((packed));
_Static_assert(sizeof(struct tunnel) == sizeof(struct ethernet) + TUNNEL_BYTES, "tunnel");

static __always_inline void make_eid_key(struct eid_key *key, __u32 instance, __u8 family,
					 const __u32 *address)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->bits = EID_HOST_BITS;
	key->instance_be[1] = instance >> 16;
	key->instance_be[2] = instance >> 8;
	key->instance_be[3] = instance;
	key->family = family;
	__builtin_memcpy(key->address, address, 16);
}

/* Tell the daemon, but not the same more often than EVENT_QUIET_NS. */
static __noinline void tell(struct event_value *event, const __u32 *source)
{
	__u64 now_ns = bpf_ktime_get_coarse_ns(), *last;

	if (!event)
		return;
	last = bpf_map_lookup_elem(&recent, event);
	if (last && now_ns - *last < EVENT_QUIET_NS)
		return;
	bpf_map_update_elem(&recent, event, &now_ns, BPF_ANY);
	if (source)
		__builtin_memcpy(event->source, source, 16);
	bpf_ringbuf_output(&events, event, sizeof(*event), 0);
}

/* Return the interface that the kernel's routes lead to an RLOC by; 0: none. */
static __always_inline __u32 way_to(struct __sk_buff *skb, const struct tunnel *tunnel)
{
	struct bpf_fib_lookup ask = {};
	long answer;

	ask.family = AF_INET;
	ask.ifindex = skb->ifindex;
	ask.ipv4_src = tunnel->ip.source;
	ask.ipv4_dst = tunnel->ip.destination;
	answer = bpf_fib_lookup(skb, &ask, sizeof(ask), 0);
	if (answer == BPF_FIB_LKUP_RET_SUCCESS || answer == BPF_FIB_LKUP_RET_NO_NEIGH)
		return ask.ifindex;
	return 0;
}

/* Send the frame, whose outer header is to be `tunnel`, to its RLOC. The kernel's routes and
 * neighbours fill in the Ethernet addresses. With an `ifindex` given this asks for no forwarding
 * to be switched on, so a node can be a tunnel router without being an IP router; with 0 the
 * routes choose it, for a router with several lines. */
static __noinline int send_tunnel(struct __sk_buff *skb, struct tunnel *tunnel, __u32 ifindex)
{
	if (!tunnel)
		return TC_ACT_SHOT;
	if (!ifindex)
		ifindex = way_to(skb, tunnel);
	if (!ifindex)
		return drop(DROP_NO_ROUTE);
	close_ip(&tunnel->ip);
	if (bpf_skb_store_bytes(skb, 0, tunnel, sizeof(*tunnel), 0))
		return drop(SUM_KERNEL_REFUSED);
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

static __always_inline __u32 interface_of(const struct lisp_self_value *me)
{
	return me->flags & LISP_ROUTED ? 0 : me->ifindex;
}

static __always_inline int is_ours(const struct lisp_self_value *me, __u32 address)
{
	return address && (address == me->rloc || address == me->lines[0] ||
			   address == me->lines[1] || address == me->lines[2] ||
			   address == me->lines[3]);
}

struct to_rloc {
	struct lisp_self_value *router;
	__u32 rloc;
	__u32 instance;
	__u32 hash;
};

static __always_inline int lisp_encapsulate(struct __sk_buff *skb, struct to_rloc *to)
{
	__u32 bytes = skb->len - sizeof(struct ethernet);
	struct tunnel tunnel = {};
	__u8 ttl = 0;

	bpf_skb_load_bytes(skb, skb->protocol == bpf_htons(ETH_P_IP) ? 22 : 21, &ttl, 1);
	if (bpf_skb_adjust_room(skb, TUNNEL_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP))
		return drop(SUM_KERNEL_REFUSED);
	tunnel.eth.type = bpf_htons(ETH_P_IP);
	tunnel.ip.version_ihl = 0x45;
	tunnel.ip.bytes = bpf_htons(bytes + TUNNEL_BYTES);
	tunnel.ip.fragment = bpf_htons(0x4000);
	tunnel.ip.ttl = ttl;
	tunnel.ip.protocol = IPPROTO_UDP;
	tunnel.ip.source = to->router->rloc;
	tunnel.ip.destination = to->rloc;
	tunnel.source_port = bpf_htons(SOURCE_PORT_MIN | (to->hash & 0x3FFF));
	tunnel.destination_port = bpf_htons(LISP_DATA_PORT);
	tunnel.udp_bytes = bpf_htons(bytes + 16);
	tunnel.flags = LISP_FLAG_NONCE | LISP_FLAG_INSTANCE;
	tunnel.nonce[0] = to->hash >> 16;
	tunnel.nonce[1] = to->hash >> 8;
	tunnel.nonce[2] = to->hash;
	tunnel.instance = bpf_htonl(to->instance << 8);
	count(SUM_ENCAPSULATED);
	return send_tunnel(skb, &tunnel, interface_of(to->router));
}

/* Write the Ethernet header that an EID's port is to see. */
static __always_inline long address_eid(struct __sk_buff *skb, const struct eid_value *eid,
					const __u8 *smac, __u16 type)
{
	struct ethernet eth;

	mac_copy(eth.dmac, eid->mac);
	mac_copy(eth.smac, smac);
	eth.type = bpf_htons(type);
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
}

static __always_inline int no_mapping(struct eid_key *eid, const __u32 *source)
{
	struct event_value event = {.kind = EVENT_MISS};

	event.eid = *eid;
	tell(&event, source);
	return drop(DROP_NO_MAPPING);
}

/* Tell whether a guarded port may send from `source` into the instance that all tenants share:
 * the address must be an EID of that port. What comes from outside has no EID. */
static __always_inline int owns_source(const struct port_value *port, __u32 instance, __u8 family,
				       const __u32 *source)
{
	struct eid_value *eid;
	struct eid_key key;

	if (!(port->flags & PORT_GUARDED))
		return 1;
	make_eid_key(&key, instance, family, source);
	eid = bpf_map_lookup_elem(&eids, &key);
	return eid && eid->port == port->number;
}

/* tc ingress of an access port, behind access_in, which let through what is for the router. */
SEC("tc")
int lisp_in(struct __sk_buff *skb)
{
	struct port_value *port = port_here(skb);
	struct to_rloc to = {.router = router()};
	__u16 type = bpf_ntohs(skb->protocol);
	struct map_cache_value *mapping;
	struct port_value *place;
	struct eid_value *here;
	struct eid_key key;
	struct flow flow;
	__u32 index;

	if (!port || !to.router || skb->vlan_present ||
	    parse_flow(skb, &flow, sizeof(struct ethernet), type) != FLOW_FOUND)
		return drop(DROP_LISP);
	to.instance = to.router->instance;
	if (to.instance == LISP_OF_PORT)
		to.instance = port->label;
	else if (!owns_source(port, to.instance, flow.family, flow.source))
		return drop(DROP_SPOOFED);
	to.hash = hash_of(&flow, 0);
	make_eid_key(&key, to.instance, flow.family, flow.destination);
	here = bpf_map_lookup_elem(&eids, &key);
	if (here && !here->forward_to) {
		place = place_of(here->port);
		if (!place)
			return drop(DROP_NO_PORT);
		if (address_eid(skb, here, to.router->router_mac, type))
			return drop(SUM_KERNEL_REFUSED);
		return to_access(skb, here->port, place->label);
	}
	if (here) {
		to.rloc = here->forward_to;
		return lisp_encapsulate(skb, &to);
	}
	mapping = bpf_map_lookup_elem(&map_cache, &key);
	if (!mapping)
		return no_mapping(&key, flow.source);
	if (!mapping->count)
		return mapping->action == 2 ? no_mapping(&key, flow.source) : drop(DROP_NO_MAPPING);
	index = to.hash % mapping->count;
	if (index >= RLOCS_MAX)
		return drop(DROP_NO_MAPPING);
	to.rloc = mapping->rlocs[index].address;
	return lisp_encapsulate(skb, &to);
}

/* Send a packet for an EID that moved on to its new place. */
static __always_inline int send_on(struct __sk_buff *skb, struct tunnel *tunnel, __u32 rloc,
				   struct lisp_self_value *me)
{
	if (tunnel->ip.ttl <= 1)
		return drop(DROP_HOP_COUNT);
	tunnel->ip.ttl--;
	tunnel->ip.source = me->rloc;
	tunnel->ip.destination = rloc;
	count(SUM_STRAYS);
	return send_tunnel(skb, tunnel, interface_of(me));
}

/* Note who sends to an EID: it has it in its map-cache, and must hear when the EID moves. */
static __always_inline void hear(struct eid_key *eid, struct eid_value *found, __u32 rloc)
{
	struct event_value event = {.kind = EVENT_HEARD, .rloc = rloc};
	struct heard_key key;
	__u64 now_ns;

	__builtin_memset(&key, 0, sizeof(key));
	key.eid = *eid;
	key.eid.bits = found->bits;
	key.rloc = rloc;
	event.eid = key.eid;
	if (found->forward_to) {
		event.kind = EVENT_STRAY;
		tell(&event, NULL);
	}
	if (bpf_map_lookup_elem(&heard, &key))
		return;
	now_ns = bpf_ktime_get_coarse_ns();
	bpf_map_update_elem(&heard, &key, &now_ns, BPF_ANY);
	event.kind = EVENT_HEARD;
	tell(&event, NULL);
}

/* Read the destination behind the LISP header; 0 when it is neither IPv4 nor IPv6. */
static __always_inline int inner_destination(struct __sk_buff *skb, __u32 *address)
{
	const __u32 offset = sizeof(struct tunnel);
	__u8 version;

	if (bpf_skb_load_bytes(skb, offset, &version, 1))
		return 0;
	if (version >> 4 == 4)
		return bpf_skb_load_bytes(skb, offset + 16, address, 4) ? 0 : 4;
	if (version >> 4 == 6)
		return bpf_skb_load_bytes(skb, offset + 24, address, 16) ? 0 : 6;
	return 0;
}

/* tc ingress of the underlay interface. Everything but our own tunnel goes on to the host. */
SEC("tc")
int lisp_under(struct __sk_buff *skb)
{
	struct lisp_self_value *me = router();
	__u32 address[4] = {}, instance = 0;
	struct eid_value *found;
	struct port_value *place;
	struct tunnel tunnel;
	struct eid_key key;
	int family;

	if (!me || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present ||
	    bpf_skb_load_bytes(skb, 0, &tunnel, sizeof(tunnel)) ||
	    tunnel.ip.version_ihl != 0x45 || tunnel.ip.protocol != IPPROTO_UDP ||
	    tunnel.ip.fragment & bpf_htons(0x3FFF) || !is_ours(me, tunnel.ip.destination) ||
	    tunnel.destination_port != bpf_htons(LISP_DATA_PORT))
		return TC_ACT_UNSPEC;	/* rack_in is next */
	if ((tunnel.flags & LISP_FLAG_NONCE && tunnel.flags & LISP_FLAG_VERSION) ||
	    tunnel.flags & LISP_FLAG_KEYS)
		return drop(DROP_LISP);
	if (tunnel.flags & LISP_FLAG_INSTANCE)
		instance = bpf_ntohl(tunnel.instance) >> 8;
	family = inner_destination(skb, address);
	if (!family)
		return drop(DROP_LISP);
	make_eid_key(&key, instance, family, address);
	found = bpf_map_lookup_elem(&eids, &key);
	if (!found)
		return drop(DROP_NO_MAPPING);
	hear(&key, found, tunnel.ip.source);
	if (found->forward_to)
		return send_on(skb, &tunnel, found->forward_to, me);
	place = place_of(found->port);
	if (!place)
		return drop(DROP_NO_PORT);
	if (bpf_skb_adjust_room(skb, -TUNNEL_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO |
				(family == 4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 :
					       BPF_F_ADJ_ROOM_DECAP_L3_IPV6)))
		return drop(SUM_KERNEL_REFUSED);
	count(SUM_DECAPSULATED);
	if (address_eid(skb, found, me->router_mac, family == 4 ? ETH_P_IP : ETH_P_IPV6))
		return drop(SUM_KERNEL_REFUSED);
	return to_access_joined(skb, place, place->label, BARE);
}

#endif
