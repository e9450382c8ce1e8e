/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The short way out of a tunnel: past IP, UDP and the trunk's VXLAN port.
 *
 * It takes what is plain, as xdp_trunk does: one packet from the trunk's other end with a unicast
 * frame in it for a guest here, or for an RBridge behind some trunk. All
 * else, every refusal included, passes to the VXLAN port unchanged and so to trunk_in, which judges
 * and counts; so this program can only make things faster.
 */
#ifndef NUAGE_TUNNEL_IN_H
#define NUAGE_TUNNEL_IN_H

#include "fast.h"

struct tunnelled {
	struct tunnel_head head;
	struct plain_frame frame;
} __attribute__((packed));
_Static_assert(sizeof(struct tunnelled) == TUNNEL_OVERHEAD, "tunnelled");

/* Whether a packet is one that the trunk's other end sends, whole. */
static __always_inline int is_tunnelled(const struct tunnel_head *head,
					const struct tunnel_value *tunnel, __u32 bytes)
{
	return head->ip.version_ihl == 0x45 && head->ip.protocol == IPPROTO_UDP &&
	       !(head->ip.fragment & bpf_htons(0x3FFF)) &&
	       head->ip.source == tunnel->there && head->ip.destination == tunnel->here &&
	       bpf_ntohs(head->ip.bytes) == bytes && !ip_checksum(&head->ip) &&
	       head->udp.destination == bpf_htons(tunnel->udp_port) && !head->udp.checksum &&
	       bpf_ntohs(head->udp.bytes) == bytes - sizeof(head->ip) &&
	       head->vxlan.flags == bpf_htonl(VXLAN_HAS_VNI);
}

#define CONGESTED_IPV4 ECN_CE
#define CONGESTED_IPV6 (ECN_CE << 20)	/* of version, class and label */

/* Say in the packet inside what a router on the way said outside: that it was congested (RFC 6040
 * section 4.2). Return whether it may go on: one whose sender does not know ECN is lost. */
static __always_inline int mark_inside(struct __sk_buff *skb, __be16 type, __u32 link_bytes)
{
	__u32 offset = link_bytes + TUNNEL_OVERHEAD;
	__u8 ip[2];
	__be32 word, marked;
	__be16 old, new;

	if (type == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, offset, &word, sizeof(word)) ||
		    !(word & bpf_htonl(CONGESTED_IPV6)))
			return 0;
		marked = word | bpf_htonl(CONGESTED_IPV6);
		return !bpf_skb_store_bytes(skb, offset, &marked, sizeof(marked),
					    BPF_F_RECOMPUTE_CSUM);
	}
	if (type != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, offset, ip, sizeof(ip)) || !(ip[1] & ECN_MASK))
		return 0;
	old = bpf_htons(ip[0] << 8 | ip[1]);
	new = old | bpf_htons(CONGESTED_IPV4);
	bpf_l3_csum_replace(skb, offset + __builtin_offsetof(struct ipv4, checksum), old,
			    new, sizeof(new));
	return !bpf_skb_store_bytes(skb, offset, &new, sizeof(new), 0);
}

/* Take `bytes` from the outer IP header on, and see to it that there is an Ethernet header before
 * them, which a tunnel's packet has not. Return TC_ACT_UNSPEC when the packet is untouched,
 * TC_ACT_SHOT when it is lost. */
static __always_inline int unwrap(struct __sk_buff *skb, __u32 link_bytes, __s32 bytes, __u64 flags)
{
	if (bpf_skb_adjust_room(skb, -bytes, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | flags))
		return TC_ACT_UNSPEC;
	if (!link_bytes && bpf_skb_change_head(skb, sizeof(struct ethernet), 0))
		return drop(SUM_KERNEL_REFUSED);
	return TC_ACT_OK;
}

static __always_inline int deliver_tunnelled(struct __sk_buff *skb, __u32 link_bytes,
					     const struct plain_frame *frame)
{
	__u32 label = label_of(&frame->inner), ingress = bpf_ntohs(frame->head.ingress);
	__u16 type = bpf_ntohs(frame->inner.type);
	__u32 left = skb->len - link_bytes - TUNNEL_OVERHEAD;
	struct station_key key = {.label = label};
	struct station_value *found;
	struct port_value *place;
	struct ethernet eth;
	int done;

	mac_copy(eth.dmac, frame->inner.dmac);
	mac_copy(eth.smac, frame->inner.smac);
	eth.type = frame->inner.type;
	if ((eth.dmac[0] | eth.smac[0]) & 1 || mac_equal(eth.dmac, eth.smac) ||
	    left <= (type == ETH_P_IP ? sizeof(struct ipv4) : sizeof(struct ipv6)) ||
	    (type != ETH_P_IP && type != ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	found = station_alive(label, eth.dmac);
	place = found && found->port ? place_of(found->port) : NULL;
	if (!place || place->flags & PORT_TRUNK || place->label != label)
		return TC_ACT_UNSPEC;
	mac_copy(key.mac, eth.smac);
	done = unwrap(skb, link_bytes, TUNNEL_OVERHEAD,
		      type == ETH_P_IPV6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : 0);
	if (done != TC_ACT_OK)
		return done;
	bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), BPF_F_RECOMPUTE_CSUM);
	learn(&key, ingress, 0);
	count(SUM_EGRESS);
	count(SUM_OUT_OF_TUNNEL);
	return to_access_joined(skb, place, label, BARE);
}

/* Of the outer headers what is wanted once they are judged. `link_bytes`: what stands before. */
struct outside {
	__u32 link_bytes;
	__u16 nickname;		/* ours: no two RBridges choose alike */
	__u16 source_port;
	__u8 ecn;
};

/* From one tunnel into another, whose headers are as long: they are written anew where they stand.
 * What was said of congestion is (the packet inside says so, too). */
static __always_inline int pass_between(struct __sk_buff *skb, const struct outside *came,
					const struct tunnel_value *tunnel,
					const struct hop_head *hop)
{
	__u32 bytes = skb->len - came->link_bytes, offset = came->link_bytes;
	struct {
		struct tunnel_head head;
		struct hop_head hop;
	} __attribute__((packed)) encap = {.hop = *hop};

	if (bytes > tunnel->mtu_bytes)
		return TC_ACT_UNSPEC;
	fill_tunnel(&encap.head, tunnel, bytes, came->source_port, came->ecn);
	if (tunnel->is_ethernet && !offset) {
		if (bpf_skb_change_head(skb, sizeof(struct ethernet), 0))
			return TC_ACT_UNSPEC;
		offset = sizeof(struct ethernet);
	}
	if (bpf_skb_store_bytes(skb, offset, &encap, sizeof(encap), BPF_F_RECOMPUTE_CSUM))
		return drop(SUM_KERNEL_REFUSED);
	count(SUM_TRANSIT);
	count(SUM_OUT_OF_TUNNEL);
	return into_tunnel(skb, tunnel);
}

static __always_inline int forward_tunnelled(struct __sk_buff *skb, const struct outside *came,
					     const struct plain_frame *frame)
{
	__u32 egress = bpf_ntohs(frame->head.egress), index = 0, ifindex;
	__u16 first = bpf_ntohs(frame->head.first);
	struct hop_head head = {.outer.type = bpf_htons(ETH_P_TRILL), .first = bpf_htons(first - 1)};
	struct tunnel_value *tunnel;
	struct slot_value *trunk;
	struct hop_value *hop;
	struct fib_value *path;
	int done;

	path = bpf_map_lookup_elem(&fib, &egress);
	if (!path || !path->count || !TRILL_HOPS(first))
		return TC_ACT_UNSPEC;
	if (path->count > 1)	/* the port stands for the flow: RFC 7348 section 5 */
		index = finish(mix(came->nickname, came->source_port)) % path->count;
	trunk = way_out(path, index, &hop);
	if (!trunk)
		return TC_ACT_UNSPEC;
	mac_copy(head.outer.dmac, hop->dmac);
	mac_copy(head.outer.smac, hop->smac);
	tunnel = tunnel_of(trunk);
	if (tunnel)
		return pass_between(skb, came, tunnel, &head);
	ifindex = trunk->ifindex;
	done = unwrap(skb, came->link_bytes, sizeof(struct tunnel_head) + sizeof(struct ethernet),
		      0);
	if (done != TC_ACT_OK)
		return done;
	bpf_skb_store_bytes(skb, 0, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM);
	if (renew_protocol(skb))
		return drop(SUM_KERNEL_REFUSED);
	count(SUM_TRANSIT);
	count(SUM_OUT_OF_TUNNEL);
	return bpf_redirect(ifindex, 0);
}

/* What comes out of a tunnel, `link_bytes` after the start of the frame. */
static __always_inline int from_tunnel(struct __sk_buff *skb, __u32 link_bytes)
{
	struct tunnelled *packet = (void *)(long)skb->data + link_bytes;
	struct outside came = {.link_bytes = link_bytes};
	struct tunnel_key key = {.ifindex = skb->ifindex};
	struct tunnel_value *tunnel;
	struct plain_frame frame;
	struct port_value *port;
	struct self_value *me;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->gso_size || skb->vlan_present ||
	    (void *)(packet + 1) > (void *)(long)skb->data_end ||
	    packet->head.ip.protocol != IPPROTO_UDP ||
	    packet->frame.head.outer.type != bpf_htons(ETH_P_TRILL))
		return TC_ACT_UNSPEC;
	key.vni = bpf_ntohl(packet->head.vxlan.vni) >> 8;
	tunnel = bpf_map_lookup_elem(&tunnels, &key);
	if (!tunnel || !is_tunnelled(&packet->head, tunnel, skb->len - link_bytes))
		return TC_ACT_UNSPEC;
	frame = packet->frame;
	came.source_port = bpf_ntohs(packet->head.udp.source);
	came.ecn = packet->head.ip.tos & ECN_MASK;
	port = place_of(tunnel->number);
	me = self();
	if (!port || !me || !is_plain(&frame, port, me) ||
	    is_fabrics_own(frame.inner.dmac, bpf_ntohs(frame.inner.type)))
		return TC_ACT_UNSPEC;
	came.nickname = me->nickname;
	if (came.ecn == ECN_CE && !mark_inside(skb, frame.inner.type, link_bytes))
		return drop(DROP_INNER);
	if (frame.head.egress == bpf_htons(me->nickname))
		return deliver_tunnelled(skb, link_bytes, &frame);
	return forward_tunnelled(skb, &came, &frame);
}

SEC("tc")
int tunnel_in(struct __sk_buff *skb)
{
	return from_tunnel(skb, 0);
}

/* tc ingress of the rack's network, where trunks are VXLAN ports over Ethernet. */
SEC("tc")
int rack_in(struct __sk_buff *skb)
{
	return from_tunnel(skb, sizeof(struct ethernet));
}

#endif
