"""Where a VM runs: the paper's five steps (§II-E) as synchronous machines.

A SeD on each V-node pushes an estimation vector to the Local Agent of its site; a Master
Agent at whichever site got the request asks the Local Agents, ranks what they bid by a
policy, and has the elected site commit. Nothing here opens a socket or reads a clock:
`MasterAgent` and `LocalAgent` take events and the time, and return effects and values.

Not here: what a watt costs (`nuage.energy`), who starts the VM (`nuage.iaas`).
"""
