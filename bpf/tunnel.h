/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The short way into a tunnel: all headers at once, past the trunk's VXLAN port, UDP and IP.
 *
 * A trunk is a VXLAN port over an encrypted tunnel or over the rack's network, which is a tunnel
 * here, too; the host's stack in between costs a frame more than all of ours. What is plain gets outer IP, UDP, VXLAN and TRILL headers
 * here and goes straight to the tunnel's interface; a super-frame stays whole until there. All
 * else goes by the VXLAN port, which makes the same packets, so the far end need not know.
 */
#ifndef NUAGE_TUNNEL_H
#define NUAGE_TUNNEL_H

#include "frame.h"

#define TUNNEL_TTL 64		/* as the VXLAN port sends */
#define DONT_FRAGMENT 0x4000
#define VXLAN_HAS_VNI 0x08000000
#define ECN_MASK 3		/* RFC 3168 */
#define ECN_CE 3

struct vxlan {
	__be32 flags;
	__be32 vni;		/* in the upper 24 bits */
} __attribute__((packed));

struct udp {
	__be16 source, destination, bytes, checksum;
} __attribute__((packed));

struct tunnel_head {
	struct ipv4 ip;
	struct udp udp;
	struct vxlan vxlan;
} __attribute__((packed));
_Static_assert(sizeof(struct tunnel_head) == 36, "tunnel_head");

/* What a guest's frame begins with in a tunnel; `mac` is not sent, only the kernel wants it. */
struct tunnel_encap {
	struct ethernet mac;
	struct tunnel_head head;
	__u8 trill[sizeof(struct trill_encap) - VLAN_TAG_BYTES];
	__be16 type;		/* the guest's own */
} __attribute__((packed));
_Static_assert(sizeof(struct tunnel_encap) == 92, "tunnel_encap");
#define TUNNEL_OVERHEAD 78	/* without `mac` */
#define TUNNEL_TRILL_BYTES 42	/* from the VXLAN header to the guest's packet */

static __always_inline void fill_tunnel(struct tunnel_head *head, const struct tunnel_value *tunnel,
					__u32 bytes, __u32 hash, __u8 tos)
{
	head->ip.version_ihl = 0x45;
	head->ip.tos = tos;
	head->ip.bytes = bpf_htons(bytes);
	head->ip.fragment = bpf_htons(DONT_FRAGMENT);
	head->ip.ttl = TUNNEL_TTL;
	head->ip.protocol = IPPROTO_UDP;
	head->ip.source = tunnel->here;
	head->ip.destination = tunnel->there;
	close_ip(&head->ip);
	head->udp.source = bpf_htons(0xC000 | (hash & 0x3FFF));	/* RFC 7348 section 5 */
	head->udp.destination = bpf_htons(tunnel->udp_port);
	head->udp.bytes = bpf_htons(bytes - sizeof(head->ip));
	head->vxlan.flags = bpf_htonl(VXLAN_HAS_VNI);
	head->vxlan.vni = bpf_htonl(tunnel->key.vni << 8);
}

static __always_inline struct tunnel_value *tunnel_of(const struct slot_value *trunk)
{
	struct tunnel_key key = trunk->tunnel;

	return key.ifindex ? bpf_map_lookup_elem(&tunnels, &key) : NULL;
}

/* A guest's packet as far as the short way asks. `bytes`: what each segment has, or the packet;
 * 0: it is none for the short way. */
struct plain_packet {
	__u32 bytes;
	__u8 tos;	/* outside: its ECN (RFC 6040 section 4.1, normal mode) */
};

/* Bytes of a super-frame's headers from the guest's packet on; 0: unknown. */
static __always_inline __u32 segment_headers(struct __sk_buff *skb, __u32 ip_bytes, __u8 protocol)
{
	__u8 offset;

	if (protocol == IPPROTO_UDP)
		return ip_bytes + sizeof(struct udp);
	if (protocol != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, sizeof(struct ethernet) + ip_bytes + 12, &offset, 1))
		return 0;
	return ip_bytes + (offset >> 4) * 4;
}

static __always_inline struct plain_packet plain_packet_of(struct __sk_buff *skb)
{
	struct plain_packet found = {.bytes = skb->len - sizeof(struct ethernet)};
	__u32 ip_bytes;
	__u8 head[10], protocol;

	if (bpf_skb_load_bytes(skb, sizeof(struct ethernet), head, sizeof(head)))
		return (struct plain_packet){};
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		found.tos = head[1] & ECN_MASK;
		ip_bytes = (head[0] & 0xF) * 4;
		protocol = head[9];
	} else {
		found.tos = head[1] >> 4 & ECN_MASK;
		ip_bytes = sizeof(struct ipv6);
		protocol = head[6];
	}
	if (skb->gso_size) {
		found.bytes = segment_headers(skb, ip_bytes, protocol);
		if (found.bytes)
			found.bytes += skb->gso_size;
	}
	return found;
}

/* Put all headers before a guest's frame, with `trill` from its outer Ethernet header on. Return
 * whether it has them; if not it is untouched. */
static __always_inline int enter_tunnel(struct __sk_buff *skb, const struct tunnel_value *tunnel,
					const struct trill_encap *trill)
{
	__u32 bytes = skb->len - sizeof(struct ethernet) + TUNNEL_OVERHEAD, hash;
	struct tunnel_encap encap = {.mac.type = bpf_htons(ETH_P_IP)};
	__be16 type = skb->protocol;
	struct plain_packet packet;

	if (skb->vlan_present || (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6)))
		return 0;
	packet = plain_packet_of(skb);
	if (!packet.bytes || packet.bytes + TUNNEL_OVERHEAD > tunnel->mtu_bytes || bytes > 0xFFFF)
		return 0;
	hash = bpf_get_hash_recalc(skb);
	if (bpf_skb_adjust_room(skb, TUNNEL_OVERHEAD, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
				BPF_F_ADJ_ROOM_ENCAP_L2(TUNNEL_TRILL_BYTES)))
		return 0;
	fill_tunnel(&encap.head, tunnel, bytes, hash, packet.tos);
	__builtin_memcpy(encap.trill, trill, sizeof(encap.trill));
	encap.type = type;
	bpf_skb_store_bytes(skb, 0, &encap, sizeof(encap), 0);	/* all of it was made just now */
	return 1;
}

/* A TRILL frame in transit: it has its own headers, and is no super-frame. */
static __always_inline int may_pass_into(struct __sk_buff *skb, const struct tunnel_value *tunnel)
{
	return !skb->vlan_present && !skb->gso_size &&
	       skb->len + sizeof(struct tunnel_head) <= tunnel->mtu_bytes;
}

/* Set skb->protocol to the Ethertype in the frame, as no helper does: popping a VLAN tag that is
 * written into the frame does, and of two pushed the first is. */
static __always_inline long renew_protocol(struct __sk_buff *skb)
{
	__be16 tag = bpf_htons(ETH_P_8021Q);

	return bpf_skb_vlan_push(skb, tag, 1) || bpf_skb_vlan_push(skb, tag, 1) ||
	       bpf_skb_vlan_pop(skb) || bpf_skb_vlan_pop(skb);
}

/* Put the tunnel's headers before it. A tunnel takes only what says that it is IP. */
static __always_inline long pass_into_tunnel(struct __sk_buff *skb,
					     const struct tunnel_value *tunnel,
					     const struct hop_head *hop)
{
	struct {
		struct ethernet mac;
		struct tunnel_head head;
		struct hop_head hop;
	} __attribute__((packed)) encap = {.mac.type = bpf_htons(ETH_P_IP), .hop = *hop};
	long failed;

	fill_tunnel(&encap.head, tunnel, skb->len + sizeof(encap.head), bpf_get_hash_recalc(skb),
		    0);
	failed = bpf_skb_store_bytes(skb, 0, &encap.mac, sizeof(encap.mac), 0);
	if (failed)
		return failed;
	failed = renew_protocol(skb);
	if (failed)
		return failed;
	failed = bpf_skb_adjust_room(skb, sizeof(encap) - sizeof(*hop), BPF_ADJ_ROOM_MAC, 0);
	return failed ? failed : bpf_skb_store_bytes(skb, 0, &encap, sizeof(encap), 0);
}

/* Send what has the tunnel's headers, and room for an Ethernet header before them. In the rack the
 * far end is a neighbour, whose addresses the kernel fills in: no route is looked up. */
static __always_inline int into_tunnel(struct __sk_buff *skb, const struct tunnel_value *tunnel)
{
	struct bpf_redir_neigh next = {.nh_family = AF_INET, .ipv4_nh = tunnel->there};

	count(SUM_INTO_TUNNEL);
	return tunnel->is_ethernet ?
		bpf_redirect_neigh(tunnel->key.ifindex, &next, sizeof(next), 0) :
		bpf_redirect(tunnel->key.ifindex, 0);
}

#endif
