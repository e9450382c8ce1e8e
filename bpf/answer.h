/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * ARP and ND answered from the directory in the kernel, so that guests keep their neighbours while
 * the daemon is down (RFC 826, 4861, 8302). What is not there, what has another form (duplicate
 * address detection, for instance), router solicitations and DHCP go to the daemon.
 */
#ifndef NUAGE_ANSWER_H
#define NUAGE_ANSWER_H

#include "policy.h"

struct arp {
	struct ethernet eth;
	__be16 hardware, protocol;
	__u8 hardware_bytes, protocol_bytes;
	__be16 operation;
	__u8 sender_mac[MAC_BYTES];
	__u8 sender[4];
	__u8 target_mac[MAC_BYTES];
	__u8 target[4];
} __attribute__((packed));
_Static_assert(sizeof(struct arp) == 42, "arp");

/* A neighbour solicitation with the asker's MAC, as hosts send it; the answer has the same size. */
struct nd {
	struct ethernet eth;
	struct ipv6 ip;
	__u8 kind, code;
	__be16 checksum;
	__be32 flags;
	__u8 target[16];
	__u8 option, option_words;
	__u8 mac[MAC_BYTES];
} __attribute__((packed));
#define ND_BYTES 32	/* of ICMPv6 */
#define ND_SOLICITED_OVERRIDE 0x60000000
#define ND_ROUTER 0x80000000
_Static_assert(sizeof(struct nd) == sizeof(struct ethernet) + 40 + ND_BYTES, "nd");

static __always_inline int is_own_address(const struct port_value *port, const __u8 *address)
{
	struct guard_key key = {.port = port->number, .family = 4};

	__builtin_memcpy(key.address, address, 4);
	return bpf_map_lookup_elem(&guards, &key) != NULL;
}

/* Turn a request into its reply in place; negative: not for us to answer. */
static __noinline int answer_arp(struct __sk_buff *skb, struct port_value *port)
{
	struct neighbour_key key = {.family = 4};
	struct neighbour_value *found;
	struct arp arp;
	__u8 asked[4];

	if (!port || bpf_skb_load_bytes(skb, 0, &arp, sizeof(arp)))
		return -1;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_bytes != MAC_BYTES || arp.protocol_bytes != 4 ||
	    arp.operation != bpf_htons(1) || !mac_equal(arp.sender_mac, arp.eth.smac))
		return -1;
	if ((arp.sender[0] | arp.sender[1] | arp.sender[2] | arp.sender[3]) &&
	    !is_own_address(port, arp.sender))
		return -1;
	key.label = port->label;
	__builtin_memcpy(key.address, arp.target, 4);
	found = bpf_map_lookup_elem(&neighbours, &key);
	if (!found || mac_equal(found->mac, port->mac))
		return -1;
	__builtin_memcpy(asked, arp.target, 4);
	arp.operation = bpf_htons(2);
	mac_copy(arp.eth.dmac, arp.sender_mac);
	mac_copy(arp.eth.smac, found->mac);
	mac_copy(arp.target_mac, arp.sender_mac);
	__builtin_memcpy(arp.target, arp.sender, 4);
	mac_copy(arp.sender_mac, found->mac);
	__builtin_memcpy(arp.sender, asked, 4);
	if (bpf_skb_store_bytes(skb, 0, &arp, sizeof(arp), 0))
		return -1;
	count(SUM_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

/* The checksum over addresses and body, which stand one after the other (RFC 8200 section 8.1). */
static __always_inline __be16 nd_checksum(const struct nd *nd)
{
	const __u8 *byte = (const __u8 *)nd->ip.source;
	__u32 sum = ND_BYTES + IPPROTO_ICMPV6;

	for (int i = 0; i < 32 + ND_BYTES; i += 2)
		sum += byte[i] << 8 | byte[i + 1];
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return bpf_htons(~sum & 0xFFFF);
}

/* Turn a solicitation into its advertisement in place; negative: not for us to answer. */
static __noinline int answer_nd(struct __sk_buff *skb, struct port_value *port)
{
	struct neighbour_key key = {.family = 6};
	struct guard_key own = {.family = 6};
	struct neighbour_value *found;
	struct nd nd;

	if (!port || skb->len < sizeof(nd) || bpf_skb_load_bytes(skb, 0, &nd, sizeof(nd)))
		return -1;
	if (nd.ip.following != IPPROTO_ICMPV6 || nd.ip.bytes != bpf_htons(ND_BYTES) ||
	    nd.ip.hop_limit != 255 || nd.kind != ND_SOLICITATION || nd.code || nd.option != 1 ||
	    nd.option_words != 1 || !mac_equal(nd.mac, nd.eth.smac) || nd.target[0] == 0xFF)
		return -1;
	own.port = port->number;
	__builtin_memcpy(own.address, nd.ip.source, 16);
	key.label = port->label;
	__builtin_memcpy(key.address, nd.target, 16);
	found = bpf_map_lookup_elem(&neighbours, &key);
	if (!found || mac_equal(found->mac, port->mac) || !bpf_map_lookup_elem(&guards, &own))
		return -1;
	mac_copy(nd.eth.dmac, nd.eth.smac);
	mac_copy(nd.eth.smac, found->mac);
	__builtin_memcpy(nd.ip.destination, nd.ip.source, 16);
	__builtin_memcpy(nd.ip.source, nd.target, 16);
	nd.kind = ND_ADVERTISEMENT;
	nd.flags = bpf_htonl(ND_SOLICITED_OVERRIDE | (found->is_router ? ND_ROUTER : 0));
	nd.option = 2;
	mac_copy(nd.mac, found->mac);
	nd.checksum = 0;
	nd.checksum = nd_checksum(&nd);
	if (bpf_skb_store_bytes(skb, 0, &nd, sizeof(nd), 0))
		return -1;
	count(SUM_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int answer(struct __sk_buff *skb, struct port_value *port,
				  const struct flow *flow, __u16 type)
{
	int verdict = -1;

	if (type == ETH_P_ARP)
		verdict = answer_arp(skb, port);
	else if (type == ETH_P_IPV6 && flow->source_port == ND_SOLICITATION)
		verdict = answer_nd(skb, port);
	return verdict < 0 ? punt(skb) : verdict;
}

#endif
