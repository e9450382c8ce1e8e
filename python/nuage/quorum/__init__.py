"""Who owns what can move: site leases, owners and epochs, held by a majority of the sites.

What flows in: claims, transfers and takeovers decided above (`iaas`, reconcilers). What flows
out: an epoch, or a refusal that says who owns it. Low rate: nothing on a data path waits for it.
Not here: stopping what a site no longer owns (its agents do, by `LeaseView.remaining_s`).

`model` is the vocabulary and the arithmetic of margins; `lease` is a site's own knowledge;
`state` is the rules as a machine; `memory` and `etcd` are the two drivers; `member` runs etcd.
"""
