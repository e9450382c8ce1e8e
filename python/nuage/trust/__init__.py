"""Who is believed, by whom, without asking anybody.

PKI and a daemon's own keys (`pki`, `store`), joining (`invitation`, `join`), renewal and revocation
(`renewal`, `revocation`), what is known of other sites (`book`); users' roles, tokens and
secrets (`permissions`, `tokens`, `secrets`); what can be proved afterwards (`audit`, `ledger`, and
`verify`, which an auditor runs alone); small secrets at rest (`sealing`).

Not here: who the users are (the catalogue), what is said over the channel (each daemon), which site
owns what (`quorum`). See docs/design/trust.md.
"""
