/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The maps. "user" writes what the control plane decided, "programs" what frames teach. */
#ifndef NUAGE_MAPS_H
#define NUAGE_MAPS_H

#include <bpf/bpf_helpers.h>
#include "intf.h"

#define MAP(kind, entries, key_type, value_type, map_name)	\
	struct {						\
		__uint(type, kind);				\
		__uint(max_entries, entries);			\
		__type(key, key_type);				\
		__type(value, value_type);			\
	} map_name SEC(".maps")

#define SPARSE_MAP(kind, entries, key_type, value_type, map_name)	\
	struct {							\
		__uint(type, kind);					\
		__uint(max_entries, entries);				\
		__uint(map_flags, BPF_F_NO_PREALLOC);			\
		__type(key, key_type);					\
		__type(value, value_type);				\
	} map_name SEC(".maps")

/* user -> programs. Bounded by what a node has: ports, labels, nicknames (16 bits), stations. */
MAP(BPF_MAP_TYPE_ARRAY, 1, __u32, struct self_value, self_entry);
SPARSE_MAP(BPF_MAP_TYPE_HASH, PORTS_MAX, __u32, struct port_value, ports);
SPARSE_MAP(BPF_MAP_TYPE_HASH, PORTS_MAX, __u32, struct port_value, places);
MAP(BPF_MAP_TYPE_ARRAY, TRUNKS_MAX, __u32, struct slot_value, slots);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 65536, __u32, struct fib_value, fib);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 1024, __u32, __u64, trees);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 262144, struct rpf_key, __u32, rpf);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 262144, struct prune_key, __u64, prunes);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 4096, __u32, struct flood_value, floods);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 1048576, struct station_key, struct station_value, directory);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 65536, struct guard_key, __u32, guards);
SPARSE_MAP(BPF_MAP_TYPE_HASH, PORTS_MAX, __u32, struct rules_value, rules);
SPARSE_MAP(BPF_MAP_TYPE_HASH, 1048576, struct neighbour_key, struct neighbour_value, neighbours);
MAP(BPF_MAP_TYPE_ARRAY, 1, __u32, struct lisp_self_value, lisp_self);
SPARSE_MAP(BPF_MAP_TYPE_LPM_TRIE, 131072, struct eid_key, struct map_cache_value, map_cache);
SPARSE_MAP(BPF_MAP_TYPE_LPM_TRIE, 65536, struct eid_key, struct eid_value, eids);
SPARSE_MAP(BPF_MAP_TYPE_HASH, TRUNKS_MAX, __u32, struct line_value, lines);
MAP(BPF_MAP_TYPE_ARRAY, 1, __u32, struct gro_port_value, gro_port);
SPARSE_MAP(BPF_MAP_TYPE_HASH, TRUNKS_MAX, struct tunnel_key, struct tunnel_value, tunnels);

/* programs -> user. LRU: the oldest go when one is full. */
MAP(BPF_MAP_TYPE_LRU_HASH, LEARNED_MAX, struct station_key, struct station_value, learned);
MAP(BPF_MAP_TYPE_LRU_HASH, 4096, struct heard_key, __u64, heard);
MAP(BPF_MAP_TYPE_LRU_HASH, 4096, struct event_value, __u64, recent);
MAP(BPF_MAP_TYPE_LRU_HASH, PORTS_MAX, __u32, struct echo_value, echoes);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, COUNTERS_MAX, __u32, __u64, counters);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps");

/* user makes and empties, programs fill: one entry, one table, per port that needs it. */
SPARSE_MAP(BPF_MAP_TYPE_HASH, PORTS_MAX, __u32, struct state_value, states);
struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS_PER_PORT_MAX);
	__uint(key_size, sizeof(struct flow_key));	/* types of inner maps are not in the BTF */
	__uint(value_size, sizeof(struct flow_value));
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, PORTS_MAX);
	__type(key, __u32);
	__array(values, struct flow_table);
} flows SEC(".maps");

#endif
