/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Stripped TCP joined into super-frames before it goes to its port.
 *
 * The kernel's GRO joins what a driver hands it, and knows no TRILL: what trunk_in and lisp_under
 * strip comes after it, a frame of the path's MTU each. So they send TCP out of one end of a veth
 * pair whose other end has GRO on, and gro_in there delivers what came of it. What a guest's
 * network stack does for each frame is then done once for up to 64 KiB.
 *
 * GRO compares addresses, ports and the VLAN tag, not marks. The tag is the port's number on this
 * way, and only frames of the port's own label take it: nothing of two ports, or of two labels,
 * is ever joined. What is whole already, what is not TCP and bare acknowledgements go straight.
 */
#ifndef NUAGE_GRO_H
#define NUAGE_GRO_H

#include "deliver.h"

#define TCP_ACK_ALONE 0x10

struct tcp {
	__be16 source, destination;
	__be32 sequence, acknowledged;
	__u8 offset, flags;
	__be16 window, checksum, urgent;
} __attribute__((packed));

struct tcp_ipv4 {
	struct ethernet eth;
	struct ipv4 ip;
	struct tcp tcp;
} __attribute__((packed));

struct tcp_ipv6 {
	struct ethernet eth;
	struct ipv6 ip;
	struct tcp tcp;
} __attribute__((packed));

/* Nobody waits for the order of these; they gain nothing by the longer way. */
static __always_inline int is_bare_ack(const struct tcp *tcp, __u32 bytes)
{
	return tcp->flags == TCP_ACK_ALONE && bytes <= (__u32)(tcp->offset >> 4) * 4;
}

static __always_inline int is_joinable(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct tcp_ipv4 *four = (void *)(long)skb->data;
	struct tcp_ipv6 *six = (void *)(long)skb->data;

	if (skb->gso_size || (void *)(four + 1) > end)
		return 0;
	if (four->eth.type == bpf_htons(ETH_P_IP))
		return four->ip.protocol == IPPROTO_TCP && four->ip.version_ihl == 0x45 &&
		       !is_bare_ack(&four->tcp, bpf_ntohs(four->ip.bytes) - sizeof(four->ip));
	return four->eth.type == bpf_htons(ETH_P_IPV6) && (void *)(six + 1) <= end &&
	       six->ip.following == IPPROTO_TCP &&
	       !is_bare_ack(&six->tcp, bpf_ntohs(six->ip.bytes));
}

/* Whether the frame has a tag beside it that says its port's number already. */
enum tagging { BARE, TAGGED };

/* Send a frame that came from elsewhere to an access port here, joined with its like if it can. */
static __always_inline int to_access_joined(struct __sk_buff *skb, struct port_value *place,
					    __u32 label, enum tagging tagging)
{
	struct gro_port_value *gro;
	__u32 zero = 0;

	if (!place || place->flags & PORT_TRUNK)
		return TC_ACT_SHOT;
	skb->mark = MARK | label;
	gro = bpf_map_lookup_elem(&gro_port, &zero);
	if (!gro || !gro->ifindex || place->label != label || !is_joinable(skb) ||
	    (tagging == BARE && skb->vlan_present)) {
		if (tagging == TAGGED && bpf_skb_vlan_pop(skb))
			return drop(SUM_KERNEL_REFUSED);
		return bpf_redirect(place->ifindex, 0);
	}
	if (tagging == BARE && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), place->number))
		return drop(SUM_KERNEL_REFUSED);
	/* A queue for each processor: as many as the pair has, and none waits for another. */
	skb->queue_mapping = bpf_get_smp_processor_id() % gro->queues + 1;
	return bpf_redirect(gro->ifindex, 0);
}

/* tc ingress of the end that has GRO. */
SEC("tc")
int gro_in(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, number = skb->vlan_tci;

	if ((mark & MARK_MASK) != MARK || !skb->vlan_present)
		return TC_ACT_SHOT;	/* the host's own: it has no business here */
	if (bpf_skb_vlan_pop(skb))
		return drop(SUM_KERNEL_REFUSED);
	return to_access(skb, number, mark & ~MARK_MASK);
}

#endif
