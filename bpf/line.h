/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Echoes: ours that come back are noted, and those of a tunnel may go beside it.
 *
 * A tunnel in user space costs a dozen wake-ups a packet at each end, too much for one every few
 * milliseconds. Its echoes go on the provider's line instead, between the tunnel's own addresses
 * and UDP ports, so that whatever swallows the tunnel swallows them. line_in takes them before
 * the tunnel's socket: the peer's go back, ours are noted, and all else passes untouched.
 */
#ifndef NUAGE_LINE_H
#define NUAGE_LINE_H

#include "deliver.h"

#define LINE_MAGIC 0x4E754563	/* no WireGuard message begins so: those begin with 1 to 4 */

/* docs/protocols/trill.md section 4 */
struct line_echo {
	__be16 source_port, destination_port, bytes, checksum;
	__be32 magic;
	__be32 end;		/* who asks: the end whose site sorts low (0) or high (1) */
	__u8 content[ECHO_BYTES];
} __attribute__((packed));
_Static_assert(sizeof(struct line_echo) == 32, "line_echo");

/* Note an echo of ours that came back; control looks here when it wants to know. */
static __always_inline int note_echo(struct __sk_buff *skb, __u32 offset, __u32 number, __u32 way)
{
	struct echo_value note = {.way = way};

	if (bpf_skb_load_bytes(skb, offset, note.content, sizeof(note.content)))
		return drop(DROP_SHORT);
	note.returned_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&echoes, &number, &note, BPF_ANY);
	return TC_ACT_SHOT;
}

/* Swap the outer Ethernet addresses and UDP ports, and send it back where it came from. The
 * caller has swapped the IP addresses: sums over both stay right. */
static __always_inline int send_back(struct __sk_buff *skb, struct line_echo *echo, __u32 offset)
{
	struct ethernet eth, back;
	__be16 ports[2] = {echo->destination_port, echo->source_port};

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_SHOT;
	mac_copy(back.dmac, eth.smac);
	mac_copy(back.smac, eth.dmac);
	if (bpf_skb_store_bytes(skb, 0, &back, 2 * MAC_BYTES, 0) ||
	    bpf_skb_store_bytes(skb, offset, ports, sizeof(ports), 0))
		return TC_ACT_SHOT;
	count(SUM_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline struct line_value *line_of(struct __sk_buff *skb, struct line_echo *echo,
						  __u32 offset)
{
	__u32 port;

	if (bpf_skb_load_bytes(skb, offset, echo, sizeof(*echo)) ||
	    echo->magic != bpf_htonl(LINE_MAGIC) || echo->source_port != echo->destination_port)
		return NULL;
	port = bpf_ntohs(echo->destination_port);
	return bpf_map_lookup_elem(&lines, &port);
}

static __always_inline int line_ipv4(struct __sk_buff *skb)
{
	__u32 offset = sizeof(struct ethernet), swapped[2];
	struct line_value *line;
	struct line_echo echo;
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version_ihl != 0x45 ||
	    ip.protocol != IPPROTO_UDP || ip.fragment & bpf_htons(0x3FFF))
		return TC_ACT_UNSPEC;
	line = line_of(skb, &echo, offset + sizeof(ip));
	if (!line || line->family != 4 || line->peer[0] != ip.source)
		return TC_ACT_UNSPEC;
	if (bpf_ntohl(echo.end) == line->end)
		return note_echo(skb, offset + sizeof(ip) + 16, line->number, ECHO_ON_LINE);
	swapped[0] = ip.destination;
	swapped[1] = ip.source;
	if (bpf_skb_store_bytes(skb, offset + 12, swapped, sizeof(swapped), 0))
		return TC_ACT_SHOT;
	return send_back(skb, &echo, offset + sizeof(ip));
}

static __always_inline int line_ipv6(struct __sk_buff *skb)
{
	__u32 offset = sizeof(struct ethernet), swapped[8], differ = 0;
	struct line_value *line;
	struct line_echo echo;
	struct ipv6 ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.following != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	line = line_of(skb, &echo, offset + sizeof(ip));
	if (!line || line->family != 6)
		return TC_ACT_UNSPEC;
	for (int i = 0; i < 4; i++)
		differ |= line->peer[i] ^ ip.source[i];
	if (differ)
		return TC_ACT_UNSPEC;
	if (bpf_ntohl(echo.end) == line->end)
		return note_echo(skb, offset + sizeof(ip) + 16, line->number, ECHO_ON_LINE);
	__builtin_memcpy(swapped, ip.destination, 16);
	__builtin_memcpy(swapped + 4, ip.source, 16);
	if (bpf_skb_store_bytes(skb, offset + 8, swapped, sizeof(swapped), 0))
		return TC_ACT_SHOT;
	return send_back(skb, &echo, offset + sizeof(ip));
}

SEC("tc")
int line_in(struct __sk_buff *skb)
{
	if (skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return line_ipv4(skb);
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? line_ipv6(skb) : TC_ACT_UNSPEC;
}

#endif
