"""Building an IaaS and everything in it: the use cases, where storage, network and placement meet.

What flows in: typed operations from `api` and from other sites, facts from nodes. What flows
out: changes to the site's own catalogue, wishes for its nodes, questions to other sites.

- `index`       the federation as this site knows it, for synchronous decisions
- `operations`  the one table of what can be asked, by whom, and who answers
- `people infrastructure building contracts images volumes machines`  the use cases, by noun
- `wishes`      records → what each node shall do (pure)
- `observe`     what nodes report → changes of records (pure)
- `migration`   a VM's way to another node or site (pure)
- `failover`    what becomes of VMs whose node or site is gone (pure)
- `site`        the ports through which use cases act
"""
