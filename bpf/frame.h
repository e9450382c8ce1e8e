/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Frames: their layouts, the flow inside, counters. Only looks; nothing here forwards. */
#ifndef NUAGE_FRAME_H
#define NUAGE_FRAME_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

#define AF_INET 2
#define ETH_P_TRILL 0x22F3
#define ETH_P_L2_ISIS 0x22F4
#define ETH_P_FGL 0x893B
#define ETH_P_CHANNEL 0x8946
#define NICKNAME_MAX 0xFFBF
#define NICKNAME_ANY 0xFFC0
#define CHANNEL_ECHO 3
#define CHANNEL_HEAD_BYTES 4
#ifndef IPPROTO_ICMPV6
#define IPPROTO_ICMPV6 58
#endif
#define HOP_COUNT_MAX 63
#define HOP_COUNT_IPV4 60	/* access.h: first_hops */
#define HOP_COUNT_IPV6 15
#define TRILL_VERSION(first) ((first) >> 14)
#define TRILL_MULTI 0x0800
#define TRILL_OPTION_BYTES(first) ((((first) >> 6) & 0x1F) * 4)
#define TRILL_HOPS(first) ((first) & 0x3F)
#define OPTIONS_CRITICAL 0xE0000000	/* RFC 7179 section 2 */
#define FGL_OVERHEAD 28
#define VLAN_TAG_BYTES 4
#define TCP_FLAGS_AT 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10

struct ethernet {
	__u8 dmac[MAC_BYTES];
	__u8 smac[MAC_BYTES];
	__be16 type;
} __attribute__((packed));

/* RFC 6325 section 3.1: V:2 R:2 M:1 OpLen:5 HopCount:6 | egress or root | ingress */
struct trill_head {
	struct ethernet outer;
	__be16 first;
	__be16 egress;
	__be16 ingress;
} __attribute__((packed));

/* After the options. In a VLAN frame `second` is the Ethertype and there is no more. */
struct trill_inner {
	__u8 dmac[MAC_BYTES];
	__u8 smac[MAC_BYTES];
	__be16 tag;
	__be16 control;
	__be16 second;
	__be16 low;
	__be16 type;
} __attribute__((packed));

/* What ingress puts before the guest's Ethertype; `vlan` only when the guest sent a tag. */
struct trill_encap {
	struct trill_head head;
	__u8 dmac[MAC_BYTES];
	__u8 smac[MAC_BYTES];
	__be16 fgl_high;
	__be16 high;
	__be16 fgl_low;
	__be16 low;
	__be16 vlan;
	__be16 tci;
} __attribute__((packed));
_Static_assert(sizeof(struct trill_encap) == 44, "trill_encap");

struct hop_head {	/* what a transit RBridge rewrites */
	struct ethernet outer;
	__be16 first;
} __attribute__((packed));

enum flow_form { FLOW_FOUND, FLOW_NONE, FLOW_BAD };

/* Whether a frame can be the first of its flow, as far as its protocol tells. */
enum flow_stage { STAGE_ANY, STAGE_FIRST, STAGE_LATER };

/* One direction of a flow; for ICMP `source_port` is the type and `destination_port` the id, and
 * what an error quotes lies from `quote_at` to `end` of the frame. */
struct flow {
	__u32 source[4];
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 family;
	__u8 fragment;
	__u8 form;
	__u8 stage;
	__u8 pad[3];
	__u32 quote_at;
	__u32 end;
};

static __always_inline void count(__u32 index)
{
	__u64 *cell = bpf_map_lookup_elem(&counters, &index);

	if (cell)
		*cell += 1;
}

static __always_inline int drop(__u32 cause)
{
	count(cause);
	return TC_ACT_SHOT;
}

/* Hand a frame to the daemon's packet sockets, and to nothing else of the host: its own ARP and
 * IP ignore what is for another host. */
static __always_inline int punt(struct __sk_buff *skb)
{
	bpf_skb_change_type(skb, PACKET_OTHERHOST);
	count(SUM_PUNTED);
	return TC_ACT_OK;
}

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	return *(const __u16 *)a == *(const __u16 *)b &&
	       *(const __u16 *)(a + 2) == *(const __u16 *)(b + 2) &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline void mac_copy(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, MAC_BYTES);
}

/* 01-80-C2-00-00-xx: bridges' own group addresses and TRILL's */
static __always_inline int is_bridge_group(const __u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xC2 && !mac[3] && !mac[4];
}

/* What RBridges and bridges say to each other: no guest sends it, none gets it. ESADI is such. */
static __always_inline int is_fabrics_own(const __u8 *dmac, __u16 type)
{
	return is_bridge_group(dmac) || type == ETH_P_TRILL || type == ETH_P_L2_ISIS ||
	       type == ETH_P_CHANNEL;
}

static __always_inline struct port_value *port_here(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;

	return bpf_map_lookup_elem(&ports, &ifindex);
}

static __always_inline struct port_value *place_of(__u32 number)
{
	struct port_value *place = bpf_map_lookup_elem(&places, &number);

	return place && place->ifindex ? place : NULL;
}

static __always_inline struct self_value *self(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&self_entry, &zero);
}

/* This LISP tunnel router, if it is one. */
static __always_inline struct lisp_self_value *router(void)
{
	__u32 zero = 0;
	struct lisp_self_value *found = bpf_map_lookup_elem(&lisp_self, &zero);

	return found && found->ifindex ? found : NULL;
}

struct ipv4 {
	__u8 version_ihl, tos;
	__be16 bytes, id, fragment;
	__u8 ttl, protocol;
	__be16 checksum;
	__u32 source, destination;
} __attribute__((packed));

struct ipv6 {
	__be32 version_class_label;
	__be16 bytes;
	__u8 following, hop_limit;
	__u32 source[4], destination[4];
} __attribute__((packed));

/* The Internet checksum of a header without options; of one that has its checksum, 0 if right. */
static __always_inline __u16 ip_checksum(const struct ipv4 *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += word[i];
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return ~sum;
}

static __always_inline void close_ip(struct ipv4 *ip)
{
	ip->checksum = 0;
	ip->checksum = ip_checksum(ip);
}

static __always_inline int is_echo_request(const struct flow *flow)
{
	return flow->source_port == (flow->protocol == IPPROTO_ICMP ? 8 : 128);
}

/* Of an ICMP or ICMPv6 message: an echo, or its reply. */
static __always_inline int is_echo(const struct flow *flow)
{
	return is_echo_request(flow) ||
	       flow->source_port == (flow->protocol == IPPROTO_ICMP ? 0 : 129);
}

/* Of an ICMP or ICMPv6 message: an error, which quotes the packet that it answers. */
static __always_inline int is_icmp_error(const struct flow *flow)
{
	__u16 kind = flow->source_port;

	if (flow->protocol == IPPROTO_ICMP)
		return kind == 3 || kind == 11 || kind == 12;
	return flow->protocol == IPPROTO_ICMPV6 && kind >= 1 && kind <= 4;
}

/* Where the packet at `offset` ends by its own word, 0 when it cannot be. What lies behind,
 * up to Ethernet's shortest frame or as its sender likes, its receiver does not read. A super-frame
 * may be too long for the header to say. */
static __always_inline __u32 end_of(struct __sk_buff *skb, __u32 offset, __u32 bytes,
				   __u32 header_bytes)
{
	if (skb->gso_size && (bytes == 0 || bytes == header_bytes))
		return skb->len;
	return bytes < header_bytes || offset + bytes > skb->len ? 0 : offset + bytes;
}

/* A quote is seldom whole: of TCP it has the ports at least (RFC 792). */
static __always_inline int parse_ports(struct __sk_buff *skb, struct flow *flow, __u32 offset,
				       __u32 end, int is_quote)
{
	__u8 bytes[TCP_FLAGS_AT + 1];
	__be16 id = 0;

	if (flow->protocol == IPPROTO_TCP && !is_quote) {
		if (offset + sizeof(bytes) > end ||
		    bpf_skb_load_bytes(skb, offset, bytes, sizeof(bytes)))
			return FLOW_BAD;
		flow->source_port = bytes[0] << 8 | bytes[1];
		flow->destination_port = bytes[2] << 8 | bytes[3];
		flow->stage = (bytes[TCP_FLAGS_AT] & (TCP_SYN | TCP_ACK)) == TCP_SYN ?
			STAGE_FIRST : STAGE_LATER;
	} else if (flow->protocol == IPPROTO_UDP || flow->protocol == IPPROTO_TCP) {
		if (offset + 4 > end || bpf_skb_load_bytes(skb, offset, bytes, 4))
			return FLOW_BAD;
		flow->source_port = bytes[0] << 8 | bytes[1];
		flow->destination_port = bytes[2] << 8 | bytes[3];
	} else if (flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6) {
		if (offset + 4 > end || bpf_skb_load_bytes(skb, offset, bytes, 4))
			return FLOW_BAD;
		flow->source_port = bytes[0];
		if (offset + 6 <= end)
			bpf_skb_load_bytes(skb, offset + 4, &id, 2);
		flow->destination_port = bpf_ntohs(id);
		flow->quote_at = offset + 8;
		flow->end = end;
		if (is_echo(flow))
			flow->stage = is_echo_request(flow) ? STAGE_FIRST : STAGE_LATER;
	}
	return FLOW_FOUND;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct flow *flow, __u32 offset,
				      __u32 quote_end)
{
	struct ipv4 ip;
	__u32 header_bytes, end;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return FLOW_BAD;
	header_bytes = (ip.version_ihl & 0xF) * 4;
	end = quote_end ?: end_of(skb, offset, bpf_ntohs(ip.bytes), header_bytes);
	if (ip.version_ihl >> 4 != 4 || header_bytes < sizeof(ip) || offset + header_bytes > end)
		return FLOW_BAD;
	flow->family = 4;
	flow->source[0] = ip.source;
	flow->destination[0] = ip.destination;
	flow->protocol = ip.protocol;
	if (bpf_ntohs(ip.fragment) & 0x1FFF) {
		flow->fragment = 1;
		return FLOW_FOUND;
	}
	return parse_ports(skb, flow, offset + header_bytes, end, quote_end != 0);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct flow *flow, __u32 offset,
				      __u32 quote_end)
{
	struct ipv6 ip;
	__u8 extension[4];
	__u32 end;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return FLOW_BAD;
	end = quote_end ?: end_of(skb, offset, sizeof(ip) + bpf_ntohs(ip.bytes), sizeof(ip));
	if (bpf_ntohl(ip.version_class_label) >> 28 != 6 || offset + sizeof(ip) > end)
		return FLOW_BAD;
	flow->family = 6;
	__builtin_memcpy(flow->source, ip.source, 16);
	__builtin_memcpy(flow->destination, ip.destination, 16);
	flow->protocol = ip.following;
	offset += sizeof(ip);
	for (int i = 0; i < 6; i++) {	/* guest_frame._EXTENSIONS_MAX */
		__u8 kind = flow->protocol;

		if (kind != 0 && kind != 43 && kind != 60 && kind != 44)
			return parse_ports(skb, flow, offset, end, quote_end != 0);
		if (bpf_skb_load_bytes(skb, offset, extension, 4))
			return FLOW_BAD;
		flow->protocol = extension[0];
		offset += kind == 44 ? 8 : extension[1] * 8 + 8;
		if (offset > end)
			return FLOW_BAD;
		if (kind == 44 && (extension[2] << 8 | extension[3]) >> 3) {
			flow->fragment = 1;
			return FLOW_FOUND;
		}
	}
	return FLOW_BAD;
}

/* Fill `flow` from the packet at `offset` of the frame, or from what an error quotes there up to
 * `quote_end`; 0: it is no quote. */
static __noinline int parse_packet(struct __sk_buff *skb, struct flow *flow, __u32 offset,
				   __u16 type, __u32 quote_end)
{
	if (!flow)
		return FLOW_BAD;
	__builtin_memset(flow, 0, sizeof(*flow));
	if (type == ETH_P_IP)
		flow->form = parse_ipv4(skb, flow, offset, quote_end);
	else if (type == ETH_P_IPV6)
		flow->form = parse_ipv6(skb, flow, offset, quote_end);
	else
		flow->form = FLOW_NONE;
	return flow->form;
}

static __always_inline int parse_flow(struct __sk_buff *skb, struct flow *flow, __u32 offset,
				      __u16 type)
{
	return parse_packet(skb, flow, offset, type, 0);
}

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 0x9E3779B1;	/* Fibonacci hashing, Knuth 6.4 */
	return hash ^ hash >> 15;
}

/* Every bit of the input reaches every bit of the result (MurmurHash3's finaliser): a remainder
 * looks at the low ones only. */
static __always_inline __u32 finish(__u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85EBCA6B;
	hash = (hash ^ hash >> 13) * 0xC2B2AE35;
	return hash ^ hash >> 16;
}

/* What spreads flows over equal paths: the same for every frame of one flow. */
static __always_inline __u32 hash_of(const struct flow *flow, __u32 seed)
{
	__u32 hash = mix(0, seed);

	if (flow->form != FLOW_FOUND)
		return finish(hash);
	for (int i = 0; i < 4; i++)
		hash = mix(mix(hash, flow->source[i]), flow->destination[i]);
	if (flow->protocol == IPPROTO_TCP || flow->protocol == IPPROTO_UDP)
		hash = mix(hash, flow->source_port << 16 | flow->destination_port);
	return finish(hash);
}

static __noinline __u32 flow_hash(struct __sk_buff *skb, __u32 offset, __u16 type, __u32 seed)
{
	struct flow flow;

	parse_flow(skb, &flow, offset, type);
	return hash_of(&flow, seed);
}

static __always_inline __u32 mac_seed(const __u8 *dmac, const __u8 *smac, __u32 label)
{
	__u32 low = dmac[2] << 24 | dmac[3] << 16 | dmac[4] << 8 | dmac[5];
	__u32 high = smac[2] << 24 | smac[3] << 16 | smac[4] << 8 | smac[5];

	return mix(mix(label, low), high);
}

#endif
