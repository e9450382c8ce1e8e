"""The network of the federation: TRILL fabric, LISP mobility, segments and trunks (paper §II-D).

Decides; the node agents act. Machines here are synchronous: events and the time in, effects
out. Only `runner`, `trunk_wireguard` and `port_probe` touch the kernel. The forwarding itself
is behind `forwarding.ForwardingPlane`: eBPF in production, `software_plane` in tests and
simulation.
"""
