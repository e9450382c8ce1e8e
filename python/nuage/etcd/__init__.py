"""A small typed client of etcd 3.4, through its JSON gateway.

What flows in: keys, compares, operations. What flows out: values with their revisions, or an
error that says whether the effect is known. Not here: what the keys mean (`catalogue`,
`quorum`). `messages` is what goes over the wire, `client` sends it.
"""
