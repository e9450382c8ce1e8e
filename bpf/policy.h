/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a guest may send and get: its own addresses, its rate, its security groups.
 *
 * A rule lets a flow begin; both directions of a begun flow pass until it is idle for its time, or
 * the rules change so that they would not let it begin from where it did (network/policy.py says
 * the same in Python, and a differential test holds them together).
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

/* A guest that plays router or DHCP server. There are clients that do not look whether an answer
 * comes from a server's port. */
static __always_inline int is_rogue(const struct flow *flow)
{
	if (flow->protocol == IPPROTO_ICMPV6)
		return flow->source_port == ND_ROUTER_ADVERTISEMENT ||
		       flow->source_port == ND_REDIRECT;
	return flow->protocol == IPPROTO_UDP &&
	       (flow->source_port == 67 || flow->source_port == 547 ||
		flow->destination_port == 68 || flow->destination_port == 546);
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

	__builtin_memset(key, 0, sizeof(*key));
	if (flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6)
		from = to = is_echo(flow) ? to : from;
	key->protocol = flow->protocol;
	key->family = flow->family;
	key->fragment = flow->fragment;
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
	struct flow_key *key;
	__u32 opener;
	__u32 value;
	__u32 found;
};

static long match_rule(__u32 index, void *context)
{
	struct rule_walk *walk = context;
	struct flow_key *key = walk->key;
	struct rule_value *rule;
	__u32 wrong = 0, value;

	if (index >= RULES_MAX)
		return 1;
	rule = &walk->rules->rules[index];
	if (!rule->used || rule->direction != walk->opener)
		return 0;
	if (rule->protocol && rule->protocol != key->protocol)
		return 0;
	if (rule->family) {
		if (rule->family != key->family)
			return 0;
		for (int i = 0; i < 4; i++)
			wrong |= (key->remote[i] ^ rule->address[i]) & rule->mask[i];
		if (wrong)
			return 0;
	}
	value = rule->first == 0 && rule->last == 0xFFFF ? 0 : walk->value;
	if (value < rule->first || value > rule->last)
		return 0;
	walk->found = 1;
	return 1;
}

/* What rules compare: the type of ICMP, else the port of who did not begin. A frame that goes the
 * other way than the first is an echo's reply, where the first was an echo. */
static __always_inline __u32 compared(const struct flow_key *key, const struct flow *flow,
				      __u32 way, __u32 opener)
{
	if (flow->protocol != IPPROTO_ICMP && flow->protocol != IPPROTO_ICMPV6)
		return opener == TO_GUEST ? key->guest_port : key->remote_port;
	if (way != opener && is_echo(flow))
		return flow->protocol == IPPROTO_ICMP ? 8 : 128;
	return flow->source_port;
}

/* Tell whether a rule lets `opener` begin the flow of a frame that goes `way`. */
static __noinline int may_begin(__u32 number, struct flow_key *key, struct flow *flow,
				__u32 way, __u32 opener)
{
	struct rule_walk walk = {.key = key, .opener = opener};

	if (!key || !flow || flow->fragment)
		return 0;
	walk.value = compared(key, flow, way, opener);
	walk.rules = bpf_map_lookup_elem(&rules, &number);
	if (!walk.rules)
		return 0;
	bpf_loop(walk.rules->count, match_rule, &walk, 0);
	return walk.found;
}

/* Let fragments between the two pass: only the first has ports, and it comes first. */
static __always_inline void note_fragments(void *table, const struct flow_key *key,
					   const struct flow_value *known)
{
	struct flow_value value = *known;
	struct flow_key all = *key;

	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return;
	all.guest_port = all.remote_port = 0;
	all.fragment = 1;
	bpf_map_update_elem(table, &all, &value, BPF_ANY);
}

/* Tell whether a guest's frame of a flow that this port knows nothing of may be an answer. The
 * flow may be older than the table, when the guest has moved here or the plane is new: of what
 * outsiders may begin such a frame is no beginning, and the flow is to end with their rules. */
static __always_inline int answers_unseen(struct state_value *state, const struct flow *flow,
					  __u64 now_ns)
{
	if (flow->stage != STAGE_ANY)
		return flow->stage == STAGE_LATER;
	return !state || !state->since_s ||
	       now_ns < (state->since_s + UDP_IDLE_NS / SECOND_NS) * SECOND_NS;
}

/* Tell whether a frame can begin its flow anew: from the other side than who began it. Without
 * knowing from the protocol, a guest's frame is an answer, an outsider's is what rules allow. */
static __always_inline int is_beginning(const struct flow_value *known, const struct flow *flow,
					__u32 way)
{
	if (known->opener == way || flow->stage == STAGE_LATER)
		return 0;
	return flow->stage == STAGE_FIRST || (known->closed && way == TO_GUEST);
}

/* Judge a flow that was begun under other rules than now hold. */
static __always_inline void judge_anew(struct port_value *port, struct flow_key *key,
				       struct flow *flow, struct flow_value *known, __u32 way)
{
	known->closed = !may_begin(port->number, key, flow, way, known->opener);
	known->generation = port->generation;
}

/* Tell whether an ICMP error may pass: what it quotes went the other way, from whom it goes to,
 * in a flow that is open. It begins no flow and keeps none alive. `flow` is then the quoted one's:
 * the stack has no room for both. */
static __noinline int error_passes(struct __sk_buff *skb, struct port_value *port,
				   struct flow *flow, __u32 way)
{
	__u32 number, receiver[4], wrong = 0;
	struct flow_value *known;
	struct flow_key key;
	void *table;

	if (!port || !flow || flow->form != FLOW_FOUND)
		return 0;
	__builtin_memcpy(receiver, flow->destination, sizeof(receiver));
	if (parse_packet(skb, flow, flow->quote_at, flow->family == 4 ? ETH_P_IP : ETH_P_IPV6,
			 flow->end) != FLOW_FOUND)
		return 0;
	for (int i = 0; i < 4; i++)
		wrong |= flow->source[i] ^ receiver[i];
	number = port->number;
	table = bpf_map_lookup_elem(&flows, &number);
	if (wrong || !table)
		return 0;
	way = way == FROM_GUEST ? TO_GUEST : FROM_GUEST;
	make_flow_key(&key, flow, way);
	known = bpf_map_lookup_elem(table, &key);
	if (!known || bpf_ktime_get_coarse_ns() - known->seen_ns >= idle_ns(flow->protocol))
		return 0;
	if (known->generation != port->generation) {
		if (flow->fragment)
			return 0;
		judge_anew(port, &key, flow, known, way);
	}
	return !known->closed;
}

/* Tell whether a frame of `flow` may pass the port, and note the flow when it may. */
static __noinline int policy_allows(struct port_value *port, struct flow *flow, __u32 way)
{
	struct flow_value *known, fresh = {};
	struct state_value *state;
	struct flow_key key;
	__u32 number;
	void *table;
	int is_old;

	if (!port || !flow || flow->form != FLOW_FOUND)
		return 0;
	if (flow->protocol == IPPROTO_ICMPV6 && (flow->source_port == ND_SOLICITATION ||
						 flow->source_port == ND_ADVERTISEMENT))
		return 1;	/* the directory's business */
	number = port->number;
	table = bpf_map_lookup_elem(&flows, &number);
	if (!table)
		return 0;
	fresh.seen_ns = bpf_ktime_get_coarse_ns();
	fresh.generation = port->generation;	/* before the rules are read, as it is written after */
	fresh.opener = way;
	make_flow_key(&key, flow, way);
	known = bpf_map_lookup_elem(table, &key);
	state = NULL;
	if (known && fresh.seen_ns - known->seen_ns < idle_ns(flow->protocol)) {
		is_old = known->generation != fresh.generation;
		if (is_old) {
			if (flow->fragment)
				return 0;
			judge_anew(port, &key, flow, known, way);
		}
		if (is_old || fresh.seen_ns - known->seen_ns > SECOND_NS) {	/* spare the cache line */
			known->seen_ns = fresh.seen_ns;
			if (!known->closed && !flow->fragment)
				note_fragments(table, &key, known);
		}
		if (!is_beginning(known, flow, way) || !may_begin(number, &key, flow, way, way))
			return !known->closed;
	} else {
		state = bpf_map_lookup_elem(&states, &number);
		if (way == FROM_GUEST && answers_unseen(state, flow, fresh.seen_ns) &&
		    may_begin(number, &key, flow, way, TO_GUEST))
			fresh.opener = TO_GUEST;
		else if (!may_begin(number, &key, flow, way, way))
			return 0;
	}
	bpf_map_update_elem(table, &key, &fresh, BPF_ANY);
	note_fragments(table, &key, &fresh);
	if (!state)
		state = bpf_map_lookup_elem(&states, &number);
	if (state && !state->since_s)
		state->since_s = fresh.seen_ns / SECOND_NS + 1;
	return 1;
}

/* Tell whether a frame may pass a filtered port. */
static __always_inline int may_pass(struct __sk_buff *skb, struct port_value *port,
				    struct flow *flow, __u32 way)
{
	if (is_icmp_error(flow))
		return error_passes(skb, port, flow, way);
	return policy_allows(port, flow, way);
}

#endif
