"""The IO-node agent: hosts one storage daemon per IaaS (paper §II-C, §IV-D).

What flows in: `IonodeWish`. What flows out: `IonodeReport`. The agent decides in `plan` (pure) and
acts through the `StorageDaemon` port; the bytes are the Rust core's, in processes of their own.

- `port`      what the agent asks of a daemon
- `plan`      wish and what is seen → the next acts
- `storaged`  the real daemon: a process, its control socket
- `agent`     the loop
- `images`    images on disk, converted to raw
"""
