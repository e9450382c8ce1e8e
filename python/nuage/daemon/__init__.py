"""One file per process, wiring only: `controller`, `vnode`, `ionode`, `edge`.

Decisions live in the rooms below; here ports meet their drivers.

- `configuration`  the TOML file of a process
- `process`        event loop, logs, signals, metrics: the same for all
- `sites`          channels to the other sites, feeds
- `nodes`          sessions of this site's nodes
- `reconciler`     changes → wishes for nodes; reports → acts
- `placing`        the Master and Local Agent on the channels
- `energy`         a site's watts, costs and nodes in service; beside it `energy_sources` (PDUs,
                   weather, tariff, carbon), `energy_power` (sleep and wake), `energy_plans`,
                   `energy_figures`, `energy_metrics`
- `access`         tokens and audit
- `images`         the image store of a controller
"""
