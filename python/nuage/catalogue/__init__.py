"""A site's own store of typed objects, and the feeds that show it to the other sites.

What flows in: changes decided above (`iaas`, `placement`, `trust`), feeds of other sites.
What flows out: records, events, and read-only replicas of the other sites with the age of each
part. Not here: who may ask (`trust`), who owns what can move (`quorum`), any transport.

`store` is the contract. `memory`, `sqlite` and `etcd` are its drivers, built on one pure
machine, `table`. `feed` decides, `follow` acts, `replica` keeps; `iaas.index` is the view of all.
"""
