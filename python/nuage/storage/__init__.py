"""Volumes, replicas, repair: decides where data rests; `ionode` acts.

`places` chooses the IO-nodes of a volume's copies within the contract.
"""
