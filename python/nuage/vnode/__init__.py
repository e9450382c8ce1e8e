"""The V-node agent: runs virtual machines, attaches their disks and ports, estimates.

What flows in: the last `VnodeWish` of the site's controller, kept on the node's disk. What flows
out: `VnodeReport` values. `machine` decides, `agent` feeds it, `hypervisor` is the port that a
fake and QEMU implement. Nothing here knows a transport to the controller.
"""
