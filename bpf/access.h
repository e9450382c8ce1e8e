/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Access ports: frames of guests come in, are judged, and leave natively or in a TRILL header. */
#ifndef NUAGE_ACCESS_H
#define NUAGE_ACCESS_H

#include "answer.h"
#include "deliver.h"
#include "tunnel.h"

/* Put the TRILL header before a native frame. Keeps skb->protocol, GSO and CHECKSUM_PARTIAL, so
 * that a super-frame is cut at the trunk into frames with a header each. */
static __always_inline long encapsulate(struct __sk_buff *skb, struct trill_encap *encap)
{
	__u32 bytes = sizeof(*encap) - VLAN_TAG_BYTES, room = FGL_OVERHEAD;
	long failed;

	if (skb->vlan_present) {	/* the guest's own tag moves into the frame */
		encap->vlan = skb->vlan_proto;
		encap->tci = bpf_htons(skb->vlan_tci);
		bytes += VLAN_TAG_BYTES;
		room += VLAN_TAG_BYTES;
		failed = bpf_skb_vlan_pop(skb);
		if (failed)
			return failed;
	}
	failed = bpf_skb_change_head(skb, room, 0);
	if (failed)
		return failed;
	if (bytes == sizeof(*encap))
		return bpf_skb_store_bytes(skb, 0, encap, sizeof(*encap), 0);
	return bpf_skb_store_bytes(skb, 0, encap, sizeof(*encap) - VLAN_TAG_BYTES, 0);
}

static __always_inline void fill_encap(struct trill_encap *encap, const struct ethernet *eth,
				       __u32 label, __u16 first, __u16 egress, __u16 ingress)
{
	encap->head.outer.type = bpf_htons(ETH_P_TRILL);
	encap->head.first = bpf_htons(first);
	encap->head.egress = bpf_htons(egress);
	encap->head.ingress = bpf_htons(ingress);
	mac_copy(encap->dmac, eth->dmac);
	mac_copy(encap->smac, eth->smac);
	encap->fgl_high = encap->fgl_low = bpf_htons(ETH_P_FGL);
	encap->high = bpf_htons(label >> 12);
	encap->low = bpf_htons(label & 0xFFF);
}

/* Hops that a guest's frame begins with. The VXLAN port under a trunk takes what follows the outer
 * Ethernet header for IP where skb->protocol says IP, as it does here, and copies its ECN: bits of
 * the hop count. In these counts they say that nobody there knows ECN (RFC 6040 section 4.1,
 * compatibility mode), since a mark outside would be lost where the far VXLAN port unwraps it. */
static __always_inline __u16 first_hops(const struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return HOP_COUNT_IPV4;
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? HOP_COUNT_IPV6 : HOP_COUNT_MAX;
}

static __always_inline int send_unicast(struct __sk_buff *skb, struct ethernet *eth, __u32 label,
					__u32 egress)
{
	struct self_value *me = self();
	struct trill_encap encap = {};
	struct tunnel_value *tunnel;
	struct slot_value *trunk;
	struct fib_value *path;
	struct hop_value *hop;
	__u32 index = 0;

	if (!me || !me->nickname)
		return drop(DROP_NO_NICKNAME);
	path = bpf_map_lookup_elem(&fib, &egress);
	if (!path || !path->count)
		return drop(DROP_NO_ROUTE);
	if (path->count > 1)
		index = flow_hash(skb, sizeof(*eth), bpf_ntohs(eth->type),
				  mac_seed(eth->dmac, eth->smac, label)) % path->count;
	trunk = way_out(path, index, &hop);
	if (!trunk)
		return drop(DROP_NO_ROUTE);
	mac_copy(encap.head.outer.dmac, hop->dmac);
	mac_copy(encap.head.outer.smac, hop->smac);
	fill_encap(&encap, eth, label, first_hops(skb), egress, me->nickname);
	tunnel = tunnel_of(trunk);
	if (tunnel && enter_tunnel(skb, tunnel, &encap)) {
		count(SUM_INGRESS);
		return into_tunnel(skb, tunnel);
	}
	if (encapsulate(skb, &encap))
		return drop(SUM_KERNEL_REFUSED);
	count(SUM_INGRESS);
	return bpf_redirect(trunk->ifindex, 0);
}

/* To everybody of the segment: ports here, and the tree pruned by interest. */
static __always_inline int send_flood(struct __sk_buff *skb, struct ethernet *eth, __u32 label,
				      __u32 came_from)
{
	struct self_value *me = self();
	struct trill_encap encap = {};
	__u64 *trunks, wanted = 0;
	__u16 first;
	__u32 tree;

	flood_local(skb, label, came_from);
	if (!me || !me->nickname || !me->tree)
		return TC_ACT_SHOT;
	count(SUM_FLOODED);
	tree = me->tree;
	trunks = bpf_map_lookup_elem(&trees, &tree);
	if (trunks)
		wanted = branches(tree, label, *trunks);
	if (!wanted)
		return TC_ACT_SHOT;
	first = TRILL_MULTI | first_hops(skb);
	fill_encap(&encap, eth, label, first, tree, me->nickname);
	if (encapsulate(skb, &encap))
		return drop(SUM_KERNEL_REFUSED);
	copy_to_trunks(skb, wanted, first);
	return TC_ACT_SHOT;
}

static __always_inline int inject(struct __sk_buff *skb, struct ethernet *eth, __u32 label,
				  __u32 came_from)
{
	struct station_value *found = NULL;

	if (!(eth->dmac[0] & 1))
		found = station_alive(label, eth->dmac);
	if (!found)
		return send_flood(skb, eth, label, came_from);
	if (!found->port)
		return send_unicast(skb, eth, label, found->nickname);
	if (found->port == came_from)
		return TC_ACT_SHOT;
	return to_access(skb, found->port, label);
}

/* A frame, or what a super-frame is cut into, must fit the segment. */
static __always_inline int fits(struct __sk_buff *skb, const struct port_value *port)
{
	if (skb->gso_size)
		return skb->gso_size + 40 <= port->mtu_bytes;	/* IPv4 and TCP at least */
	return skb->len - sizeof(struct ethernet) + (skb->vlan_present ? VLAN_TAG_BYTES : 0) <=
	       port->mtu_bytes;
}

/* Say what is wrong with a guest's frame; negative: nothing. Those for control pass here. */
static __always_inline int refusal(struct __sk_buff *skb, struct port_value *port,
				   struct ethernet *eth, __u16 type)
{
	const __u8 *smac = eth->smac;

	if (is_fabrics_own(eth->dmac, type))
		return DROP_BRIDGE_CONTROL;
	if (smac[0] & 1 || !(smac[0] | smac[1] | smac[2] | smac[3] | smac[4] | smac[5]))
		return DROP_SPOOFED;
	if (!fits(skb, port))
		return DROP_SHORT;
	if (!within_rate(port, skb->len, FROM_GUEST))
		return DROP_RATE;
	return -1;
}

static __always_inline int is_for_router(const struct ethernet *eth)
{
	struct lisp_self_value *me = router();

	return me && mac_equal(me->router_mac, eth->dmac);
}

SEC("tc")
int access_in(struct __sk_buff *skb)
{
	struct port_value *port = port_here(skb);
	struct station_key key = {};
	struct ethernet eth;
	struct flow flow;
	__u16 type;
	int cause;

	if (!port)
		return drop(DROP_NO_PORT);
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return drop(DROP_SHORT);
	type = skb->vlan_present ? ETH_P_8021Q : bpf_ntohs(eth.type);
	cause = refusal(skb, port, &eth, type);
	if (cause >= 0)
		return drop(cause);
	parse_flow(skb, &flow, sizeof(eth), type);
	if (port->flags & PORT_GUARDED && !mac_equal(eth.smac, port->mac))
		return drop(DROP_SPOOFED);
	if (is_for_control(&flow, type))
		return answer(skb, port, &flow, type);
	if (port->flags & PORT_GUARDED && !is_genuine(port, &flow))
		return drop(DROP_SPOOFED);
	if (port->flags & PORT_FILTERED && !may_pass(skb, port, &flow, FROM_GUEST))
		return drop(DROP_POLICY);
	if (flow.form == FLOW_FOUND && is_for_router(&eth))
		return TC_ACT_UNSPEC;	/* lisp_in is next */
	if (!(port->flags & PORT_GUARDED)) {
		key.label = port->label;
		mac_copy(key.mac, eth.smac);
		learn(&key, 0, port->number);
	}
	return inject(skb, &eth, port->label, port->number);
}

/* tc egress of an access port: what the fabric brings, judged by the port's own rules. */
SEC("tc")
int access_out(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;
	struct port_value *port;
	struct flow flow;
	__u16 type;

	if ((mark & MARK_MASK) != MARK)
		return TC_ACT_OK;	/* an answer of the daemon */
	skb->mark = 0;
	port = port_here(skb);
	if (!port)
		return drop(DROP_NO_PORT);
	if (port->label != (mark & ~MARK_MASK))
		return drop(DROP_LABEL);
	if (port->flags & PORT_FILTERED) {
		type = skb->vlan_present ? ETH_P_8021Q : bpf_ntohs(skb->protocol);
		parse_flow(skb, &flow, sizeof(struct ethernet), type);
		if (!may_pass(skb, port, &flow, TO_GUEST))
			return drop(DROP_POLICY);
	}
	return within_rate(port, skb->len, TO_GUEST) ? TC_ACT_OK : drop(DROP_RATE);
}

#endif
