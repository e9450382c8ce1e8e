"""A whole federation's hardware on one machine: namespaces, cables, BMCs, PDUs, weather.

Hardware only. What is *not* here: any decision of the product. The lab starts the daemons it
is told to start, as a machine's init would, restarts them when they exit, and takes their
power away when asked. The product above runs unchanged and reaches the hardware through
the network alone (Redfish), as it would in a container full of servers.

In flows a description (`france.toml`) and, from `nuage.lab.assembly`, the daemons of each
node. Out flow namespaces, addresses and watts. Invariants: nothing is created outside the
lab's own namespaces, cgroup and state directory, and `destroy` finds all of it by name.
"""
