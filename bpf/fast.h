/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The short way on a physical NIC: XDP before the stack makes a socket buffer of the frame.
 *
 * It takes what is plain: unicast in a fine-grained label, no options, one path. All else, every
 * refusal included, passes to trunk_in unchanged, which judges and counts; so this program can
 * only make things faster. A frame for here is stripped and goes up the stack with its label in
 * the metadata, where GRO sees the guest's own TCP, and trunk_in delivers it.
 */
#ifndef NUAGE_FAST_H
#define NUAGE_FAST_H

#include "trunk.h"

struct plain_frame {
	struct trill_head head;
	struct trill_inner inner;
} __attribute__((packed));

static __always_inline int is_plain(const struct plain_frame *frame, const struct port_value *port,
				    const struct self_value *me)
{
	__u16 first = bpf_ntohs(frame->head.first), ingress = bpf_ntohs(frame->head.ingress);

	return frame->head.outer.type == bpf_htons(ETH_P_TRILL) && !TRILL_VERSION(first) &&
	       !(first & TRILL_MULTI) && !TRILL_OPTION_BYTES(first) &&
	       frame->inner.tag == bpf_htons(ETH_P_FGL) &&
	       frame->inner.second == bpf_htons(ETH_P_FGL) &&
	       mac_equal(frame->head.outer.dmac, port->mac) && port->flags & PORT_ADJACENT &&
	       mac_equal(frame->head.outer.smac, port->neighbour) && ingress &&
	       ingress <= NICKNAME_MAX && me->nickname && ingress != me->nickname &&
	       frame->head.egress != bpf_htons(NICKNAME_ANY);
}

static __always_inline int fast_forward(struct plain_frame *frame)
{
	__u32 egress = bpf_ntohs(frame->head.egress), slot;
	__u16 first = bpf_ntohs(frame->head.first);
	struct slot_value *trunk;
	struct port_value *place;
	struct fib_value *path;

	path = bpf_map_lookup_elem(&fib, &egress);
	if (!path || path->count != 1 || !TRILL_HOPS(first))
		return XDP_PASS;
	slot = path->hops[0].slot;
	trunk = bpf_map_lookup_elem(&slots, &slot);
	if (!trunk || !trunk->ifindex)
		return XDP_PASS;
	place = place_of(trunk->number);
	if (!place || !(place->flags & PORT_XDP))
		return XDP_PASS;	/* its driver may not send what XDP redirects */
	mac_copy(frame->head.outer.dmac, path->hops[0].dmac);
	mac_copy(frame->head.outer.smac, path->hops[0].smac);
	frame->head.first = bpf_htons(first - 1);
	count(SUM_TRANSIT);
	return bpf_redirect(trunk->ifindex, 0);
}

static __always_inline int fast_strip(struct xdp_md *ctx, struct plain_frame *frame)
{
	__u32 label = label_of(&frame->inner), ingress = bpf_ntohs(frame->head.ingress);
	struct station_key key = {.label = label};
	__u8 macs[2 * MAC_BYTES];
	struct stripped *note;
	void *data;

	if (frame->inner.smac[0] & 1 ||
	    is_fabrics_own(frame->inner.dmac, bpf_ntohs(frame->inner.type)) ||
	    !bpf_map_lookup_elem(&floods, &label))
		return XDP_PASS;
	mac_copy(macs, frame->inner.dmac);
	mac_copy(macs + MAC_BYTES, frame->inner.smac);
	mac_copy(key.mac, frame->inner.smac);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*note)))
		return XDP_PASS;	/* a driver without metadata */
	if (bpf_xdp_adjust_head(ctx, FGL_OVERHEAD))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	note = (void *)(long)ctx->data_meta;
	if (data + sizeof(macs) > (void *)(long)ctx->data_end || (void *)(note + 1) > data)
		return XDP_ABORTED;
	__builtin_memcpy(data, macs, sizeof(macs));
	note->magic = STRIPPED_MAGIC;
	note->label = label;
	learn(&key, ingress, 0);
	return XDP_PASS;
}

SEC("xdp")
int xdp_trunk(struct xdp_md *ctx)
{
	struct plain_frame *frame = (void *)(long)ctx->data;
	__u32 ifindex = ctx->ingress_ifindex;
	struct port_value *port;
	struct self_value *me;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	port = bpf_map_lookup_elem(&ports, &ifindex);
	me = self();
	if (!port || !me || !is_plain(frame, port, me))
		return XDP_PASS;
	if (frame->head.egress == bpf_htons(me->nickname))
		return fast_strip(ctx, frame);
	return fast_forward(frame);
}

#endif
