"""`nuage …`: the command line.

- `main`      the group, how errors are told
- `daemons`   the processes of a node
- `joining`   founding and joining a federation, inviting nodes
- `session`   which federation is meant, and who asks
- `showing`   tables, sizes, ages; `--json`
- `sites iaas vms volumes images people`  what can be asked, by noun
- `demo`      the main job, told as it goes
"""
