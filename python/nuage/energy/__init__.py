"""What a watt is and costs: meters, curves, tariffs, carbon, cooling, rules, accounts.

Pure arithmetic over values: nothing here opens a socket, except `connectors.fetch`, which is
a handful of lines around parsers that work on bytes. Time comes in as a parameter, in seconds
since the Unix epoch; local time appears only where a tariff speaks it.

Rules for bad data stand in one place each and are told with the result: a reading that is
refused names its rule (`meters`), a price that was bridged says so (`tariffs`).
"""
