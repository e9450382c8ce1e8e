"""The only place that talks to hardware: machines' BMCs and racks' PDUs.

What it is *not*: a decision. Rooms above ask for a state or a reading, this one obtains it,
with limits on time and on how often it is tried, and says whose fault it was when it fails.
Flows in: URLs, credentials, pins. Flows out: `energy.meters.Reading`, power states, outlets.
Invariants: an order that may have taken effect is never repeated behind the caller's back;
a value that cannot be true is never returned.
"""
