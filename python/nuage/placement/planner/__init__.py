"""The planner: from where VMs are to where they should be, as an ordered, timed plan.

Four reasons to move a VM (paper §II-B, §II-E): hardware defection, performance, energy and
quality of service. One way to do it: `search` finds a target placement under constraints,
`schedule` orders and times the migrations and power acts that lead there, `check` replays
the plan independently and finds nothing to object to, or the plan is not used.

Flow: `Fleet` in; `repair` or `consolidate` → target; `schedule` → `Plan`; `check_plan` → ().
Nothing here moves a VM: `nuage.iaas` executes plans, one step at a time.
"""
