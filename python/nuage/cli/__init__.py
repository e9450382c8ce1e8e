"""`nuage …`: the command line.

- `main`      the group, how errors are told
- `daemons`   the processes of a node
- `joining`   founding and joining a federation, inviting nodes
- `profile`   where the API is and who asks
- `client`    the REST API from the command line
"""
