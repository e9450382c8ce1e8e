/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * ARP answered from the directory in the kernel, so that guests keep their neighbours while the
 * daemon is down (RFC 826, 8302). What is not there, and ND and DHCP, goes to the daemon.
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

static __always_inline int answer(struct __sk_buff *skb, struct port_value *port,
				  const struct flow *flow, __u16 type)
{
	int verdict = -1;

	if (type == ETH_P_ARP)
		verdict = answer_arp(skb, port);
	return verdict < 0 ? punt(skb) : verdict;
}

#endif
