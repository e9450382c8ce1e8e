"""The nouns: frozen values without I/O. Everything above speaks in these.

What flows in: documents parsed at the edge (`api`, `catalogue`). What flows out: the same
values. A noun checks what it can know alone (ranges, forms) in `__post_init__` and raises
`InvalidRequest` with the field's name; what needs the rest of the world is checked above.
"""
