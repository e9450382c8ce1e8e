/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a guest may send and get: its own addresses, its rate, its security groups.
 *
 * A rule lets a flow begin; both directions of a begun flow pass until it is idle for its time
 * (network/policy.py says the same in Python, and a differential test holds them together).
 */
#ifndef NUAGE_POLICY_H
#define NUAGE_POLICY_H

#include "frame.h"

#define ND_ROUTER_SOLICITATION 133
#define ND_ROUTER_ADVERTISEMENT 134
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_REDIRECT 137
#define SECOND_NS 1000000000ULL
#define TCP_IDLE_NS (7440 * SECOND_NS)	/* RFC 5382 section 5 */
#define UDP_IDLE_NS (180 * SECOND_NS)
#define OTHER_IDLE_NS (60 * SECOND_NS)

/* ARP, neighbour discovery and DHCP are answered by us, never forwarded. */
static __always_inline int is_for_control(const struct flow *flow, __u16 type)
{
	if (type == ETH_P_ARP)
		return 1;
	if (flow->form != FLOW_FOUND || flow->fragment)
		return 0;
	if (flow->protocol == IPPROTO_UDP && flow->family == 4)
		return flow->destination_port == 67;
	return flow->protocol == IPPROTO_ICMPV6 &&
	       (flow->source_port == ND_ROUTER_SOLICITATION ||
		flow->source_port == ND_SOLICITATION || flow->source_port == ND_ADVERTISEMENT);
}

/* A guest that plays router or DHCP server. */
static __always_inline int is_rogue(const struct flow *flow)
{
	if (flow->protocol == IPPROTO_ICMPV6)
		return flow->source_port == ND_ROUTER_ADVERTISEMENT ||
		       flow->source_port == ND_REDIRECT;
	return flow->protocol == IPPROTO_UDP &&
	       (flow->source_port == 67 || flow->source_port == 547);
}

/* A guarded guest sends IP only, from its own MAC and addresses. */
static __always_inline int is_genuine(const struct port_value *port, const struct flow *flow)
{
	struct guard_key key = {.port = port->number, .family = flow->family};

	if (flow->form != FLOW_FOUND || is_rogue(flow))
		return 0;
	__builtin_memcpy(key.address, flow->source, sizeof(key.address));
	return bpf_map_lookup_elem(&guards, &key) != NULL;
}

/* A token bucket per port and direction; trunks have FROM_GUEST only. It holds a super-frame at
 * least. What is larger still goes when the bucket is full and leaves it empty. */
static __noinline int within_rate(struct port_value *port, __u32 bytes, __u32 direction)
{
	__u64 now_ns, gained, passed_ns;
	struct state_value *state;
	__u32 number, burst;
	__u64 rate;
	int within = 0;

	if (!port || !port->rate_bits_per_s)
		return 1;
	number = port->number;
	rate = port->rate_bits_per_s >> 3;
	burst = port->burst_bytes;
	state = bpf_map_lookup_elem(&states, &number);
	if (!state)
		return 1;
	direction &= 1;
	now_ns = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	passed_ns = now_ns - state->stamp_ns[direction];
	if (passed_ns > 100 * SECOND_NS)
		passed_ns = 100 * SECOND_NS;
	gained = state->tokens[direction];
	if (passed_ns < SECOND_NS)	/* products stay within 64 bits up to 100 Gb/s */
		gained += rate * passed_ns / SECOND_NS;
	else
		gained += rate * (passed_ns / 1000) / 1000000;
	if (gained > burst)
		gained = burst;
	if (gained >= bytes || gained == burst) {
		gained = gained >= bytes ? gained - bytes : 0;
		within = 1;
	}
	state->tokens[direction] = gained;
	state->stamp_ns[direction] = now_ns;
	bpf_spin_unlock(&state->lock);
	return within;
}

static __always_inline __u64 idle_ns(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return TCP_IDLE_NS;
	return protocol == IPPROTO_UDP ? UDP_IDLE_NS : OTHER_IDLE_NS;
}

/* One key for both directions. An echo and its reply share the id as both ports. */
static __always_inline void make_flow_key(struct flow_key *key, const struct flow *flow, __u32 way)
{
	__u16 from = flow->source_port, to = flow->destination_port;
	int is_icmp = flow->protocol == IPPROTO_ICMP, is_icmpv6 = flow->protocol == IPPROTO_ICMPV6;

	__builtin_memset(key, 0, sizeof(*key));
	if (is_icmp || is_icmpv6) {
		int is_echo = is_icmp ? from == 8 || from == 0 : from == 128 || from == 129;

		from = to = is_echo ? to : from;
	}
	key->protocol = flow->protocol;
	key->family = flow->family;
	key->guest_port = way == FROM_GUEST ? from : to;
	key->remote_port = way == FROM_GUEST ? to : from;
	if (way == FROM_GUEST) {
		__builtin_memcpy(key->guest, flow->source, 16);
		__builtin_memcpy(key->remote, flow->destination, 16);
	} else {
		__builtin_memcpy(key->guest, flow->destination, 16);
		__builtin_memcpy(key->remote, flow->source, 16);
	}
}

struct rule_walk {
	struct rules_value *rules;
	struct flow *flow;
	__u32 direction;
	__u32 found;
};

static long match_rule(__u32 index, void *context)
{
	struct rule_walk *walk = context;
	struct flow *flow = walk->flow;
	struct rule_value *rule;
	const __u32 *remote;
	__u32 wrong = 0, value;

	if (index >= RULES_MAX)
		return 1;
	rule = &walk->rules->rules[index];
	if (!rule->used || rule->direction != walk->direction)
		return 0;
	if (rule->protocol && rule->protocol != flow->protocol)
		return 0;
	if (rule->family) {
		if (rule->family != flow->family)
			return 0;
		remote = walk->direction == TO_GUEST ? flow->source : flow->destination;
		for (int i = 0; i < 4; i++)
			wrong |= (remote[i] ^ rule->address[i]) & rule->mask[i];
		if (wrong)
			return 0;
	}
	value = flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6 ?
		flow->source_port : flow->destination_port;
	if (rule->first == 0 && rule->last == 0xFFFF)
		value = 0;
	if (value < rule->first || value > rule->last)
		return 0;
	walk->found = 1;
	return 1;
}

static __always_inline int rule_allows(__u32 number, struct flow *flow, __u32 direction)
{
	struct rule_walk walk = {.flow = flow, .direction = direction};

	walk.rules = bpf_map_lookup_elem(&rules, &number);
	if (!walk.rules || flow->fragment)
		return 0;
	bpf_loop(walk.rules->count, match_rule, &walk, 0);
	return walk.found;
}

static __always_inline int is_icmp_error(const struct flow *flow)
{
	__u16 kind = flow->source_port;

	if (flow->protocol == IPPROTO_ICMP)
		return kind == 3 || kind == 11 || kind == 12;
	return flow->protocol == IPPROTO_ICMPV6 && kind >= 1 && kind <= 4;
}

/* Tell whether a frame of `flow` may pass the port `number`, and note the flow when it may. */
static __noinline int policy_allows(__u32 number, struct flow *flow, __u32 direction)
{
	struct state_value *state;
	struct flow_key key;
	__u64 now_ns, *seen;
	void *open;

	if (!flow || flow->form != FLOW_FOUND)
		return 0;
	if (flow->protocol == IPPROTO_ICMPV6 && (flow->source_port == ND_SOLICITATION ||
						 flow->source_port == ND_ADVERTISEMENT))
		return 1;	/* the directory's business */
	open = bpf_map_lookup_elem(&flows, &number);
	if (!open)
		return 0;
	now_ns = bpf_ktime_get_coarse_ns();
	make_flow_key(&key, flow, direction);
	seen = bpf_map_lookup_elem(open, &key);
	if (seen && now_ns - *seen < idle_ns(flow->protocol)) {
		if (now_ns - *seen > SECOND_NS)	/* spare the cache line */
			*seen = now_ns;
		return 1;
	}
	state = bpf_map_lookup_elem(&states, &number);
	if (direction == TO_GUEST && state && state->has_flows && is_icmp_error(flow))
		return 1;
	if (!rule_allows(number, flow, direction))
		return 0;
	bpf_map_update_elem(open, &key, &now_ns, BPF_ANY);
	if (flow->protocol == IPPROTO_TCP || flow->protocol == IPPROTO_UDP) {
		key.guest_port = key.remote_port = 0;	/* what fragments look for */
		bpf_map_update_elem(open, &key, &now_ns, BPF_ANY);
	}
	if (state)
		state->has_flows = 1;
	return 1;
}

#endif
