"""Policies: how candidates are sorted (paper §II-E step 4), as plug-ins over columns.

A policy is DIET's aggregator: it sees every candidate's columns at once and gives each a
score, lower is better. Built-ins stand below. An administrator adds one without touching
Nuage by registering a class under the entry-point group `nuage.placement_policies`
(docs/guide/policies.md has a whole example).

Invariants: a policy never sees a candidate that broke a hard rule; equal scores are
decided by node id, so the same columns always elect the same node.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol, runtime_checkable

import numpy as np

from nuage.errors import InvalidRequest, LocalProtocolError
from nuage.model.placement import VmRequest
from nuage.placement.columns import Columns, FloatArray, full_load_watts, lots_of

ENTRY_POINT_GROUP: Final = "nuage.placement_policies"
DEFAULT_POLICY: Final = "power"

# The work the cursor compares nodes by: ten minutes of one core of 18.4 GFLOPS (the
# Taurus and Orion cores of the GreenDIET runs). It weighs boot time against running time.
REFERENCE_WORK_FLOP: Final = 600 * 18.4e9
FLOPS_UNKNOWN: Final = 1e9  # of a core nobody measured: less than any that would be bought
SCORE_DIGITS: Final = 9  # of W/GFLOPS, which are 0.1 to 100: what differs below is noise
# The range that keeps the exponent 2/(P+1)-1 between 0.05 and 19 (GreenDIET's own range).
PREFERENCE_MAX: Final = 0.9

# Rounds of shift and multiply that spread every bit over all (the finalizer of splitmix64 twice).
_MIXING: Final = (
    (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0xBF58476D1CE4E5B9),
    (30, 0x94D049BB133111EB),
)  # fmt: skip


@runtime_checkable
class Policy(Protocol):
    """Gives every candidate a score; lower is better."""

    @property
    def name(self) -> str:
        """The name that requests and the command line use."""
        ...

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return one float64 per candidate, in the columns' order; NaN bars a candidate."""
        ...


@runtime_checkable
class StablePolicy(Policy, Protocol):
    """A policy that scores each candidate by itself: by its own columns and the preference.

    Its scores hold until the candidate changes, so a Local Agent keeps them. A policy that looks
    at anything else of the request, or at the others, must not say so.
    """

    @property
    def is_stable(self) -> bool:
        """True."""
        ...


def _core_flops(columns: Columns) -> FloatArray:
    """Return the flops of one core; a node not calibrated yet counts as `FLOPS_UNKNOWN`."""
    flops = columns["flops"] / np.maximum(columns["cpu_count"], 1.0)
    known: FloatArray = np.where(flops > 0, flops, FLOPS_UNKNOWN)
    return known


class Power:
    """Most flops per additional watt: marginal watts × PUE of the site now, per flops of a core.

    Among equal nodes that is the fewest additional watts. A node that is twice as slow has to
    draw half as much, since whatever runs there takes twice as long.
    """

    name = "power"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return watts per GFLOPS."""
        return columns["marginal_watts"] * columns["pue"] / (_core_flops(columns) / 1e9)


class Performance:
    """Most floating-point operations per second, all cores (paper §II-E, HPL class)."""

    name = "performance"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return minus flops."""
        return -columns["flops"]


class Random:
    """No preference; the same request over the same candidates always draws the same."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._salt = seed.to_bytes(8, "big", signed=True)

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return numbers in [0, 1) drawn from the seed, the request and the node."""
        key = blake2b(self._salt + request.request_id.encode(), digest_size=8).digest()
        drawn = lots_of(columns) ^ np.uint64(int.from_bytes(key, "big"))
        for shift, factor in _MIXING:
            drawn = (drawn ^ (drawn >> np.uint64(shift))) * np.uint64(factor)
        scores: FloatArray = (drawn >> np.uint64(11)).astype(np.float64) / 2.0**53
        return scores


class Green:
    """The paper's dynamic metric: mean watts over the requests served, per flops, × PUE.

    What was measured at part load is carried on to full load along the calibration, so that equal
    machines score alike whatever each has served, and one that draws more than its like scores
    worse by just that. Equal scores, but for the sums' own noise, are decided by node id.

    Until a node has history its calibration stands in: peak watts per flops. A node that is on,
    empty and without either is explored on purpose: it sorts before every other, and one request
    does that. Where a calibration is known finding out costs nothing: the node waits for its turn.
    """

    name = "green"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return watts per GFLOPS; below zero for a node to explore."""
        flops, peak_watts = columns["flops"], columns["peak_watts"]
        served, is_empty = columns["requests_served"] > 0, columns["vm_count"] <= 0
        load = columns["mean_utilisation"]
        load = np.where(np.isnan(load), 1.0, load)
        measured = full_load_watts(
            columns["mean_power_watts"], load, columns["idle_watts"], peak_watts
        )
        watts = np.where(served, measured, peak_watts)
        score = (watts * columns["pue"] / (np.maximum(flops, 1.0) / 1e9)).round(SCORE_DIGITS)
        is_unknown = ~served & ((flops <= 0) | (peak_watts <= 0))
        return np.where(is_unknown & is_empty & (columns["booted"] > 0), -1.0, score)


class Cost:
    """Least euros per hour: marginal watts × PUE(site, now) × price(site, now)."""

    name = "cost"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return EUR/h."""
        return columns["cost_eur_per_h"]


class Carbon:
    """Least grams of CO2 equivalent per hour."""

    name = "carbon"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return gCO2e/h."""
        return columns["carbon_g_per_h"]


class Cursor:
    """The cursor between performance and energy: `Sc = T^(2/(P+1) - 1) × E`.

    T is the time of a reference work on one core, boot included when the node is off; E the
    energy of that work. P is the request's preference: near -1 weighs time only, 0 weighs
    T × E, near 1 energy only. A reconstruction of GreenDIET's provider and user preference;
    the exact published formula was not at hand.
    """

    name = "cursor"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return the score in natural logarithm, which sorts alike and cannot overflow."""
        preference = min(max(request.preference, -PREFERENCE_MAX), PREFERENCE_MAX)
        exponent = 2.0 / (preference + 1.0) - 1.0
        is_off = 1.0 - columns["booted"]
        work_s = REFERENCE_WORK_FLOP / _core_flops(columns)
        time_s = work_s + is_off * columns["boot_time_s"]
        watts = np.maximum(columns["marginal_watts"] * columns["pue"], 1e-3)
        energy_joules = watts * work_s + is_off * columns["boot_energy_joules"]
        return exponent * np.log(time_s) + np.log(energy_joules)


class Spread:
    """Fewest VMs, then least busy: what most clouds do; keeps noise and loss small."""

    name = "spread"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return VMs on the node plus its utilisation."""
        return columns["vm_count"] + columns["cpu_utilisation"]


class Pack:
    """Fewest vCPUs left free, nodes that are on before nodes that are off."""

    name = "pack"
    is_stable = True

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        """Return vCPUs left, and a large penalty for waking a node."""
        return columns["vcpu_free"] + (1.0 - columns["booted"]) * 1e6


BUILT_IN: Final[tuple[type[Policy], ...]] = (
    Power, Performance, Random, Green, Cost, Carbon, Cursor, Spread, Pack,
)  # fmt: skip


class PolicyBook:
    """The policies that may be named in a request."""

    def __init__(
        self, policies: Iterable[Policy] | None = None, *, default: str = DEFAULT_POLICY
    ) -> None:
        if policies is None:
            policies = (cls() for cls in BUILT_IN)
        self._policies = {policy.name: policy for policy in policies}
        self._stable = {
            name
            for name, policy in self._policies.items()
            if isinstance(policy, StablePolicy) and policy.is_stable
        }
        self.default = default
        self.require(default)

    @classmethod
    def load(
        cls, found: Iterable[EntryPoint] | None = None, *, default: str = DEFAULT_POLICY
    ) -> "PolicyBook":
        """Return the built-ins and what is installed under `nuage.placement_policies`.

        Raises:
            LocalProtocolError: an entry point is not a policy; the message names it.
        """
        policies: dict[str, Policy] = {policy.name: policy for policy in (c() for c in BUILT_IN)}
        for entry in entry_points(group=ENTRY_POINT_GROUP) if found is None else found:
            loaded = entry.load()
            policy = loaded() if isinstance(loaded, type) else loaded
            if not isinstance(policy, Policy):
                raise LocalProtocolError(
                    f"{entry.value} (entry point {entry.name!r} of {ENTRY_POINT_GROUP}) "
                    "is not a policy: it needs `name` and `score(columns, request)`",
                    hint="docs/guide/policies.md shows one",
                )
            policies[policy.name] = policy
        return cls(policies.values(), default=default)

    def require(self, name: str) -> Policy:
        """Return the policy `name`, or the default for an empty name.

        Raises:
            InvalidRequest: there is none; the message lists those there are.
        """
        policy = self._policies.get(name or self.default)
        if policy is None:
            raise InvalidRequest(
                f"no placement policy {name!r}; there are {', '.join(self)}", field="policy"
            )
        return policy

    def is_stable(self, name: str) -> bool:
        """Tell whether a policy's scores may be kept while a node stays as it is."""
        return name in self._stable

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._policies))

    def __contains__(self, name: str) -> bool:
        return name in self._policies


def scored(policy: Policy, columns: Columns, request: VmRequest) -> list[float]:
    """Return the policy's scores as floats, after checking that they fit the columns."""
    result: list[float] = score_column(policy, columns, request).tolist()
    return result


def score_column(policy: Policy, columns: Columns, request: VmRequest) -> FloatArray:
    """Return the policy's scores as a column, after checking that they fit the others.

    Raises:
        LocalProtocolError: the plug-in returned something of another shape.
    """
    scores = np.asarray(policy.score(columns, request), dtype=np.float64)
    if scores.shape != (len(columns),):
        raise LocalProtocolError(
            f"policy {policy.name!r} returned shape {scores.shape} for {len(columns)} candidates"
        )
    return scores
