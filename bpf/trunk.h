/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Trunks: TRILL frames of the neighbour, checked as RFC 6325 section 4.6.2 and RFC 7780 say, in
 * the order of software_plane.SoftwarePlane. */
#ifndef NUAGE_TRUNK_H
#define NUAGE_TRUNK_H

#include "gro.h"
#include "line.h"
#include "tunnel.h"

/* A TRILL frame taken apart. `is_vlan`: it has no fine-grained label. */
struct arrival {
	struct trill_head head;		/* these two as one: a plain frame begins so */
	struct trill_inner inner;
	__u16 first;
	__u16 egress;
	__u16 ingress;
	__u16 type;
	__u32 label;
	__u32 is_vlan;
	__u32 option_bytes;
	__u32 payload;		/* offset of what follows the inner Ethertype */
	__u32 options;		/* the first word, or 0 */
};

#define PLAIN_BYTES 42
_Static_assert(__builtin_offsetof(struct arrival, inner) + sizeof(struct trill_inner) ==
	       PLAIN_BYTES, "plain");

typedef __u64 __attribute__((may_alias)) any64;
typedef __u16 __attribute__((may_alias)) any16;

static __always_inline __u32 label_of(const struct trill_inner *inner)
{
	return (bpf_ntohs(inner->control) & 0xFFF) << 12 | (bpf_ntohs(inner->low) & 0xFFF);
}

/* Most frames have no options, a fine-grained label, and their headers in one piece: read at once.
 * Negative: not such a frame. */
static __always_inline int take_plain(struct __sk_buff *skb, struct arrival *in)
{
	const any64 *from = (void *)(long)skb->data;
	any64 *to = (void *)in;

	if ((void *)from + PLAIN_BYTES > (void *)(long)skb->data_end)
		return -1;
	for (int i = 0; i < PLAIN_BYTES / 8; i++)
		to[i] = from[i];
	((any16 *)to)[PLAIN_BYTES / 2 - 1] = ((const any16 *)from)[PLAIN_BYTES / 2 - 1];
	in->first = bpf_ntohs(in->head.first);
	if (TRILL_OPTION_BYTES(in->first) || in->inner.tag != bpf_htons(ETH_P_FGL) ||
	    in->inner.second != in->inner.tag)
		return -1;
	in->egress = bpf_ntohs(in->head.egress);
	in->ingress = bpf_ntohs(in->head.ingress);
	in->label = label_of(&in->inner);
	in->type = bpf_ntohs(in->inner.type);
	in->payload = PLAIN_BYTES;
	return 0;
}

static __noinline int take_any(struct __sk_buff *skb, struct arrival *in)
{
	struct trill_inner *inner = &in->inner;
	__u32 offset = sizeof(struct trill_head);
	__be32 word;

	if (!in || bpf_skb_load_bytes(skb, 0, &in->head, sizeof(in->head)))
		return -1;
	in->first = bpf_ntohs(in->head.first);
	in->egress = bpf_ntohs(in->head.egress);
	in->ingress = bpf_ntohs(in->head.ingress);
	in->option_bytes = TRILL_OPTION_BYTES(in->first);
	if (in->option_bytes) {
		if (bpf_skb_load_bytes(skb, offset, &word, 4))
			return -1;
		in->options = bpf_ntohl(word);
		offset += in->option_bytes;
	}
	if (bpf_skb_load_bytes(skb, offset, inner, 18))
		return -1;
	if (inner->tag == bpf_htons(ETH_P_8021Q)) {
		in->label = 0;
		in->is_vlan = 1;
		in->type = bpf_ntohs(inner->second);
		in->payload = offset + 18;
		return 0;
	}
	if (inner->tag != bpf_htons(ETH_P_FGL) || inner->second != inner->tag ||
	    bpf_skb_load_bytes(skb, offset + 18, &inner->low, 4))
		return -1;
	in->label = label_of(inner);
	in->type = bpf_ntohs(inner->type);
	in->payload = offset + sizeof(*inner);
	return 0;
}

/* Shrink a TRILL frame from the front. bpf_skb_adjust_room takes only frames whose skb->protocol
 * is IP, so it becomes that first: of two VLAN tags pushed the inner one is written into the
 * frame, and popping it sets skb->protocol from what stands behind it. That tag is left beside the
 * frame, with the number `tag`. */
static __always_inline long strip(struct __sk_buff *skb, __u32 bytes, __u16 type, __u16 tag)
{
	__be16 disguise = bpf_htons(type);
	long failed;

	failed = bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), tag);
	if (failed)
		return failed;
	failed = bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 1);
	if (failed)
		return failed;
	failed = bpf_skb_store_bytes(skb, 16, &disguise, 2, BPF_F_RECOMPUTE_CSUM);
	if (failed)
		return failed;
	failed = bpf_skb_vlan_pop(skb);
	if (failed)
		return failed;
	return bpf_skb_adjust_room(skb, -(__s32)bytes, BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_FIXED_GSO);
}

static __always_inline int decapsulate(struct __sk_buff *skb, struct arrival *in)
{
	struct station_key key = {.label = in->label};
	__u32 bytes = FGL_OVERHEAD + in->option_bytes, label = in->label, left;
	struct station_value *found = NULL;
	struct port_value *place = NULL;
	struct ethernet eth;

	mac_copy(eth.dmac, in->inner.dmac);
	mac_copy(eth.smac, in->inner.smac);
	eth.type = in->inner.type;
	if (!(eth.dmac[0] & 1))
		found = station_alive(label, eth.dmac);
	if (found && found->port)
		place = place_of(found->port);
	/* A port here of that label says as much as the list of them. */
	if (in->is_vlan || ((!place || place->label != label) &&
			    !bpf_map_lookup_elem(&floods, &label)))
		return drop(DROP_LABEL);
	if (eth.smac[0] & 1 || is_fabrics_own(eth.dmac, in->type))
		return drop(DROP_INNER);
	mac_copy(key.mac, eth.smac);
	learn(&key, in->ingress, 0);
	if (mac_equal(eth.dmac, eth.smac)) {	/* where it is was learned just now */
		found = station_alive(label, eth.dmac);
		place = found && found->port ? place_of(found->port) : NULL;
	}
	left = skb->len - in->payload;
	if (left < sizeof(struct ipv4) + 1) {	/* Ethernet would have padded it to 46 */
		bpf_skb_change_tail(skb, in->payload + sizeof(struct ipv4) + 1, 0);
		left = sizeof(struct ipv4) + 1;
	}
	if (strip(skb, bytes, in->type == ETH_P_IPV6 && left > 40 ? ETH_P_IPV6 : ETH_P_IP,
		  place ? place->number : 0))
		return drop(SUM_KERNEL_REFUSED);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), BPF_F_RECOMPUTE_CSUM))
		return drop(SUM_KERNEL_REFUSED);
	count(SUM_EGRESS);
	if (found)
		return place ? to_access_joined(skb, place, label, TAGGED) : TC_ACT_SHOT;
	if (bpf_skb_vlan_pop(skb))
		return drop(SUM_KERNEL_REFUSED);
	flood_local(skb, label, 0);
	return TC_ACT_SHOT;
}

/* RBridges talk to each other in this frame (RFC 7178); tenants' frames have a label. */
static __always_inline int is_channel(const struct arrival *in)
{
	const __u8 all_egress[MAC_BYTES] = {0x01, 0x80, 0xC2, 0, 0, 0x42};

	return in->is_vlan && in->type == ETH_P_CHANNEL && mac_equal(in->inner.dmac, all_egress);
}

/* Whether a frame is of somebody else than the neighbour that the trunk has. */
static __always_inline int is_stranger(const struct port_value *port, const __u8 *smac)
{
	return port->flags & PORT_ADJACENT && !mac_equal(smac, port->neighbour);
}

/* From the neighbour, one hop: its echo goes straight back, ours is noted, the rest is control's. */
static __always_inline int channel(struct __sk_buff *skb, struct port_value *port,
				   struct arrival *in)
{
	struct ethernet back;
	__be16 protocol = 0;

	if (is_stranger(port, in->head.outer.smac))
		return drop(DROP_NO_ADJACENCY);
	if (!is_channel(in))
		return drop(DROP_INNER);
	if (bpf_skb_load_bytes(skb, in->payload, &protocol, 2) ||
	    protocol != bpf_htons(CHANNEL_ECHO))
		return punt(skb);
	if (mac_equal(in->inner.smac, port->mac))
		return note_echo(skb, in->payload + CHANNEL_HEAD_BYTES, port->number,
				 ECHO_IN_TRUNK);
	if (!mac_equal(in->inner.smac, in->head.outer.smac))
		return punt(skb);
	mac_copy(back.dmac, in->head.outer.smac);
	mac_copy(back.smac, port->mac);
	back.type = bpf_htons(ETH_P_TRILL);
	bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0);
	count(SUM_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int forward_unicast(struct __sk_buff *skb, struct arrival *in)
{
	struct tunnel_value *tunnel;
	struct slot_value *trunk;
	struct hop_value *hop;
	struct hop_head head;
	struct fib_value *path;
	__u32 egress = in->egress, index = 0;

	if (!TRILL_HOPS(in->first))
		return drop(DROP_HOP_COUNT);
	path = bpf_map_lookup_elem(&fib, &egress);
	if (!path || !path->count)
		return drop(DROP_NO_ROUTE);
	if (path->count > 1)
		index = flow_hash(skb, in->payload, in->type,
				  mac_seed(in->inner.dmac, in->inner.smac, in->label)) %
			path->count;
	trunk = way_out(path, index, &hop);
	if (!trunk)
		return drop(DROP_NO_ROUTE);
	mac_copy(head.outer.dmac, hop->dmac);
	mac_copy(head.outer.smac, hop->smac);
	head.outer.type = bpf_htons(ETH_P_TRILL);
	head.first = bpf_htons(in->first - 1);
	tunnel = tunnel_of(trunk);
	if (tunnel && may_pass_into(skb, tunnel)) {
		if (pass_into_tunnel(skb, tunnel, &head))
			return drop(SUM_KERNEL_REFUSED);
		count(SUM_TRANSIT);
		return into_tunnel(skb, tunnel);
	}
	bpf_skb_store_bytes(skb, 0, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM);
	count(SUM_TRANSIT);
	return bpf_redirect(trunk->ifindex, 0);
}

static __always_inline int forward_multi(struct __sk_buff *skb, struct port_value *port,
					 struct arrival *in)
{
	struct rpf_key key = {.tree = in->egress, .ingress = in->ingress};
	__u32 tree = in->egress, label = in->label, *slot;
	__u64 *trunks, bit = 1ULL << (port->slot & 63), others;

	trunks = bpf_map_lookup_elem(&trees, &tree);
	if (!trunks)
		return drop(DROP_UNKNOWN_TREE);
	if (!(*trunks & bit))
		return drop(DROP_NOT_TREE_PORT);
	slot = bpf_map_lookup_elem(&rpf, &key);
	if (!slot || *slot != port->slot)
		return drop(slot && *slot == RPF_REST ? DROP_TREE_REST : DROP_RPF);
	if (!TRILL_HOPS(in->first)) {
		count(DROP_HOP_COUNT);
	} else {
		others = in->is_vlan ? *trunks : branches(tree, label, *trunks);
		others &= ~bit;
		if (others && copy_to_trunks(skb, others, in->first - 1))
			count(SUM_TRANSIT);
	}
	if (in->is_vlan || !bpf_map_lookup_elem(&floods, &label))
		return TC_ACT_SHOT;
	return decapsulate(skb, in);
}

/* Say why a frame may not be looked at further; negative: it may. Channel frames come first: BFD
 * runs before the adjacency is reported. */
static __always_inline int trunk_refusal(struct port_value *port, struct arrival *in,
					 struct self_value *me)
{
	const __u8 all_rbridges[MAC_BYTES] = {0x01, 0x80, 0xC2, 0, 0, 0x40};
	int is_multi = in->first & TRILL_MULTI;

	if (TRILL_VERSION(in->first))
		return DROP_VERSION;
	if (!mac_equal(in->head.outer.dmac, is_multi ? all_rbridges : port->mac))
		return DROP_OUTER_DESTINATION;
	if (!is_multi && in->egress == NICKNAME_ANY)
		return -1;
	if (!(port->flags & PORT_ADJACENT) || !mac_equal(in->head.outer.smac, port->neighbour))
		return DROP_NO_ADJACENCY;
	if (in->options & OPTIONS_CRITICAL)
		return DROP_OPTIONS;
	if (!in->ingress || in->ingress > NICKNAME_MAX)
		return DROP_INGRESS;
	if (!me->nickname)
		return DROP_NO_NICKNAME;
	if (in->ingress == me->nickname)
		return DROP_OWN_INGRESS;
	return -1;
}

/* What xdp_trunk notes before a frame that it stripped (only XDP can write there). */
struct stripped {
	__u32 magic;
	__u32 label;
};
#define STRIPPED_MAGIC 0x4E75AE01

static __always_inline __u32 stripped_label(struct __sk_buff *skb)
{
	struct stripped *note = (void *)(long)skb->data_meta;

	if ((void *)(note + 1) > (void *)(long)skb->data || note->magic != STRIPPED_MAGIC)
		return 0;
	return note->label;
}

/* Hand what xdp_trunk left bare to its ports here. */
static __always_inline int deliver_stripped(struct __sk_buff *skb, __u32 label)
{
	struct station_value *found = NULL;
	__u8 dmac[MAC_BYTES];

	if (bpf_skb_load_bytes(skb, 0, dmac, sizeof(dmac)))
		return drop(DROP_SHORT);
	count(SUM_EGRESS);
	if (!(dmac[0] & 1))
		found = station_alive(label, dmac);
	if (found)
		return found->port ? to_access_joined(skb, place_of(found->port), label, BARE) :
				     TC_ACT_SHOT;
	flood_local(skb, label, 0);
	return TC_ACT_SHOT;
}

/* IS-IS, whose authentication only the daemon can check, at a price. Whoever can put frames on the
 * trunk can send it, so of others than the neighbour the daemon hears a little: a neighbour may
 * come back by another port of its. */
static __always_inline int isis(struct __sk_buff *skb, struct port_value *port)
{
	struct ethernet eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return drop(DROP_SHORT);
	if (is_stranger(port, eth.smac) && !within_rate(port, skb->len, FROM_GUEST))
		return drop(DROP_RATE);
	return punt(skb);
}

static __always_inline int not_trill(struct __sk_buff *skb)
{
	__u8 dmac[MAC_BYTES];

	if (bpf_skb_load_bytes(skb, 0, dmac, sizeof(dmac)))
		return drop(DROP_SHORT);
	return drop(is_bridge_group(dmac) && dmac[5] < 0x10 ? DROP_BRIDGE_CONTROL : DROP_NATIVE);
}

SEC("tc")
int trunk_in(struct __sk_buff *skb)
{
	struct port_value *port = port_here(skb);
	struct self_value *me = self();
	struct arrival in = {};
	int cause, ends_here;
	__u32 label;

	if (!port || !me)
		return drop(DROP_NO_PORT);
	label = stripped_label(skb);
	if (label)
		return deliver_stripped(skb, label);
	if (skb->vlan_present)
		return not_trill(skb);
	if (skb->protocol == bpf_htons(ETH_P_L2_ISIS))
		return isis(skb, port);
	if (skb->protocol != bpf_htons(ETH_P_TRILL))
		return not_trill(skb);
	if (take_plain(skb, &in) && take_any(skb, &in))
		return drop(DROP_SHORT);
	cause = trunk_refusal(port, &in, me);
	if (cause >= 0)
		return drop(cause);
	if (in.first & TRILL_MULTI)
		return forward_multi(skb, port, &in);
	if (in.egress == NICKNAME_ANY)
		return channel(skb, port, &in);
	ends_here = in.egress == me->nickname;
	if (is_channel(&in) && (ends_here || !TRILL_HOPS(in.first)))
		return punt(skb);	/* traces, by the daemon */
	return ends_here ? decapsulate(skb, &in) : forward_unicast(skb, &in);
}

#endif
