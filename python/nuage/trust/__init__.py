"""PKI, node identity, tokens, roles, the audit log and the location ledger."""
