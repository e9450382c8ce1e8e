/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Where a station is, and the way out to access ports and over the tree.
 *
 * A frame on its way to an access port carries its label in skb->mark, under MARK: `access_out`
 * on that port judges it there, and refuses a label that is not the port's. The mark is taken off
 * again; a frame without one comes from the host itself (an answer of the daemon).
 */
#ifndef NUAGE_DELIVER_H
#define NUAGE_DELIVER_H

#include "policy.h"

#define MARK 0x4E000000u
#define MARK_MASK 0xFF000000u

static __always_inline struct station_value *station_of(__u32 label, const __u8 *mac, int *is_listed)
{
	struct station_key key = {.label = label};
	struct station_value *found;

	mac_copy(key.mac, mac);
	found = bpf_map_lookup_elem(&directory, &key);
	*is_listed = found != NULL;
	return found ? found : bpf_map_lookup_elem(&learned, &key);
}

/* Return the station when it is listed, or learned and not too old. */
static __always_inline struct station_value *station_alive(__u32 label, const __u8 *mac)
{
	int is_listed;
	struct station_value *found = station_of(label, mac, &is_listed);

	if (!found || is_listed)
		return found;
	return bpf_ktime_get_coarse_ns() - found->seen_ns < AGE_MAX_NS ? found : NULL;
}

/* Note where a station was seen. What the directory lists is never overridden (RFC 8171). */
static __noinline void learn(struct station_key *key, __u32 nickname, __u32 port)
{
	__u64 now_ns = bpf_ktime_get_coarse_ns();
	struct station_value *found, fresh = {};
	struct state_value *state;

	if (!key || bpf_map_lookup_elem(&directory, key))
		return;
	found = bpf_map_lookup_elem(&learned, key);
	if (found) {
		if (found->nickname != nickname || found->port != port) {
			found->nickname = nickname;
			found->port = port;
			found->seen_ns = now_ns;
		} else if (now_ns - found->seen_ns > SECOND_NS) {	/* spare the cache line */
			found->seen_ns = now_ns;
		}
		return;
	}
	if (port) {
		state = bpf_map_lookup_elem(&states, &port);
		if (!state || state->learned_count >= LEARNED_PER_PORT_MAX)
			return;
		__sync_fetch_and_add(&state->learned_count, 1);
	}
	fresh.nickname = nickname;
	fresh.port = port;
	fresh.seen_ns = now_ns;
	bpf_map_update_elem(&learned, key, &fresh, BPF_ANY);
}

/* Return the trunk of the path that is a flow's own, or the next one that has a neighbour: of the
 * equal ones first, then of the backups. What the control plane takes from a trunk is one word of
 * `slots`: all paths over it change at once. */
static __always_inline struct slot_value *way_out(struct fib_value *path, __u32 index,
						  struct hop_value **hop)
{
	__u32 slot, at, count = path->count, total = path->total;
	struct slot_value *trunk;

	for (__u32 i = 0; i < ECMP_MAX && i < total; i++) {
		at = i;
		if (i < count) {
			at += index;
			if (at >= count)
				at -= count;
		}
		at &= ECMP_MAX - 1;	/* it is below: total is; a mask is what the verifier follows */
		slot = path->hops[at].slot;
		trunk = bpf_map_lookup_elem(&slots, &slot);
		if (trunk && trunk->ifindex) {
			*hop = &path->hops[at];
			return trunk;
		}
	}
	return NULL;
}

static __always_inline int to_access(struct __sk_buff *skb, __u32 number, __u32 label)
{
	struct port_value *place = place_of(number);

	if (!place || place->flags & PORT_TRUNK)
		return TC_ACT_SHOT;
	skb->mark = MARK | label;
	return bpf_redirect(place->ifindex, 0);
}

struct flood_walk {
	struct __sk_buff *skb;
	struct flood_value *flood;
	__u32 came_from;
};

static long flood_one(__u32 index, void *context)
{
	struct flood_walk *walk = context;
	struct port_value *place;
	__u32 number;

	if (index >= FLOOD_MAX)
		return 1;
	number = walk->flood->ports[index];
	if (number == walk->came_from)
		return 0;
	place = place_of(number);
	if (place && !(place->flags & PORT_TRUNK))
		bpf_clone_redirect(walk->skb, place->ifindex, 0);
	return 0;
}

/* Copy a native frame to the access ports of its segment here. */
static __always_inline void flood_local(struct __sk_buff *skb, __u32 label, __u32 came_from)
{
	struct flood_walk walk = {.skb = skb, .came_from = came_from};

	walk.flood = bpf_map_lookup_elem(&floods, &label);
	if (!walk.flood)
		return;
	skb->mark = MARK | label;
	bpf_loop(walk.flood->count, flood_one, &walk, 0);
	skb->mark = 0;
}

/* Return the tree's trunks that want `label`. */
static __always_inline __u64 branches(__u32 tree, __u32 label, __u64 trunks)
{
	struct prune_key key = {.tree = tree, .label = label};
	__u64 *some, *every, wanted = 0;

	some = bpf_map_lookup_elem(&prunes, &key);
	if (some)
		wanted = *some;
	key.label = 0;
	every = bpf_map_lookup_elem(&prunes, &key);
	if (every)
		wanted |= *every;
	return trunks & wanted;
}

struct copy_walk {
	struct __sk_buff *skb;
	struct hop_head *head;
	__u64 trunks;
	__u32 copies;
};

/* bpf_loop over slots: send a copy out of each trunk whose bit is set. */
static long copy_one(__u32 slot, void *context)
{
	struct copy_walk *walk = context;
	struct slot_value *trunk;

	if (!(walk->trunks >> slot))
		return 1;
	if (!(walk->trunks >> slot & 1))
		return 0;
	trunk = bpf_map_lookup_elem(&slots, &slot);
	if (!trunk || !trunk->ifindex)
		return 0;
	mac_copy(walk->head->outer.smac, trunk->mac);
	if (bpf_skb_store_bytes(walk->skb, 0, walk->head, sizeof(*walk->head), 0))
		return 1;
	bpf_clone_redirect(walk->skb, trunk->ifindex, 0);
	walk->copies++;
	return 0;
}

/* Send copies of the TRILL frame over `trunks`, with a header that says `first`. */
static __always_inline __u32 copy_to_trunks(struct __sk_buff *skb, __u64 trunks, __u16 first)
{
	struct hop_head head = {.outer.dmac = {0x01, 0x80, 0xC2, 0, 0, 0x40}};
	struct copy_walk walk = {.skb = skb, .head = &head, .trunks = trunks};

	head.outer.type = bpf_htons(ETH_P_TRILL);
	head.first = bpf_htons(first);
	bpf_loop(TRUNKS_MAX, copy_one, &walk, 0);
	return walk.copies;
}

#endif
