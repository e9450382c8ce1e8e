"""A Local Agent's table: the last estimation vector of each of its nodes, by column.

Rows are nodes, in the order they first reported; a forgotten node's row is filled by the
last one. Beside what SeDs report, the table keeps what is *held*: vCPUs, memory and watts
that were promised to a VM and that no vector shows yet.

Who works something out per row may keep it: `touched` tells which rows have changed since, one
number per change, and `epoch` rises when all that was kept is void (rows came, went or moved).
"""

from operator import attrgetter
from typing import Final

import numpy as np

from nuage.ids import NodeId, VmId
from nuage.model.placement import EstimationVector
from nuage.model.vm import VmShape
from nuage.placement.columns import (
    MEASURED_COLUMNS,
    BoolArray,
    FloatArray,
    IndexArray,
    LotArray,
    lot_of,
)

CURVE_POINTS: Final = 11  # watts at 0, 10 … 100 % of CPU, as SPECpower reports them
BOOT_HOLD_S: Final = 3600.0  # a woken node's boot energy is spread over one hour of use
WATTS_DIGITS: Final = 6  # equal nodes stay equal: what differs below is the sums' own noise
TOUCHED_MAX: Final = 10_000  # changes remembered; who comes later works all rows out anew
_ROWS_MIN: Final = 8

_measured = attrgetter(*MEASURED_COLUMNS)
_INDEX: Final = {name: index for index, name in enumerate(MEASURED_COLUMNS)}
_VCPU_FREE: Final = _INDEX["vcpu_free"]
_MEMORY_FREE: Final = _INDEX["memory_free_mib"]
_POWER: Final = _INDEX["power_watts"]
_VM_COUNT: Final = _INDEX["vm_count"]


class NodeTable:
    """Columns of one Local Agent. Grows by doubling; arrays are views of the rows in use."""

    def __init__(self) -> None:
        self.node_ids: list[NodeId] = []
        self.row_of: dict[NodeId, int] = {}
        self.vectors: list[EstimationVector] = []
        self.rows_of_vm: dict[VmId, set[NodeId]] = {}
        self._capacity = _ROWS_MIN
        self._measured = np.zeros((len(MEASURED_COLUMNS), _ROWS_MIN))
        self._left = np.zeros_like(self._measured)  # as measured, less what is held
        self._read_s = np.zeros(_ROWS_MIN)
        self._sent_s = np.zeros(_ROWS_MIN)
        self._usable = np.zeros(_ROWS_MIN, dtype=np.bool_)
        self._maintenance = np.zeros(_ROWS_MIN, dtype=np.bool_)
        self._overcommit = np.ones(_ROWS_MIN)
        self._lot = np.zeros(_ROWS_MIN, dtype=np.uint64)
        self._curve = np.zeros((_ROWS_MIN, CURVE_POINTS))
        self._held_vcpu = np.zeros(_ROWS_MIN)
        self._held_units = np.zeros(_ROWS_MIN)  # of `vcpu_free`: more, where cores are preserved
        self._held_memory_mib = np.zeros(_ROWS_MIN)
        self._held_watts = np.zeros(_ROWS_MIN)
        self._held_count = np.zeros(_ROWS_MIN)
        self._curves: dict[NodeId, FloatArray] = {}
        self._marginal_watts: dict[int, tuple[FloatArray, int]] = {}  # and the changes it knows
        self.touched: list[int] = []
        self.epoch = 0
        self._rank: IndexArray | None = None
        self._oldest_sent_s: float | None = np.inf  # None: to be looked for
        self.extra_count = 0

    def __len__(self) -> int:
        return len(self.node_ids)

    def put(self, vector: EstimationVector) -> bool:
        """Keep `vector` and return True, unless a later one of the same node is here."""
        row, before_s = self.row_of.get(vector.node_id), np.inf
        if row is None:
            row = self._add(vector)
        else:
            before = self.vectors[row]
            before_s = before.sent_s
            if vector.sent_s < before.sent_s:
                return False
            if before.running != vector.running:
                self._forget_running(before)
                self._note_running(vector)
            self.extra_count -= bool(before.extra)
            self.vectors[row] = vector
        self.extra_count += bool(vector.extra)
        self._measured[:, row] = _measured(vector)
        self._settle(row)
        self._read_s[row] = vector.power_read_s
        if self._oldest_sent_s is not None:
            is_oldest = before_s == self._oldest_sent_s < vector.sent_s
            self._oldest_sent_s = None if is_oldest else min(self._oldest_sent_s, vector.sent_s)
        self._sent_s[row] = vector.sent_s
        self._usable[row] = vector.in_service and not vector.maintenance
        self._maintenance[row] = vector.maintenance
        self._overcommit[row] = max(vector.vcpu_overcommit, 1.0)
        curve = self._curves.get(vector.node_id)
        self._curve[row] = _line(vector) if curve is None else curve
        self._touch(row)
        return True

    def drop(self, node_id: NodeId) -> None:
        """Forget a node; unknown nodes are no error, reports may cross."""
        row = self.row_of.pop(node_id, None)
        if row is None:
            return
        self._forget_running(self.vectors[row])
        self.extra_count -= bool(self.vectors[row].extra)
        last = len(self.node_ids) - 1
        self._measured[:, row] = self._measured[:, last]
        self._left[:, row] = self._left[:, last]
        for column in self._row_arrays():
            column[row] = column[last]
            column[last] = 0
        self.vectors[row] = self.vectors[last]
        self.node_ids[row] = self.node_ids[last]
        if row != last:
            self.row_of[self.node_ids[row]] = row
        self.vectors.pop()
        self.node_ids.pop()
        self._rank = None
        self._oldest_sent_s = None
        self._begin_epoch()

    def set_curve(self, node_id: NodeId, watts: FloatArray) -> None:
        """Use a calibrated power curve (11 points) instead of the line from idle to peak."""
        self._curves[node_id] = watts
        row = self.row_of.get(node_id)
        if row is not None:
            self._curve[row] = watts
            self._touch(row)

    def hold(self, row: int, shape: VmShape, *, watts: float, sign: int) -> None:
        """Add (`sign` 1) or give back (-1) what a VM was promised on a node."""
        extra = shape.preserved_vcpus * (self._overcommit[row] - 1.0)
        self._held_vcpu[row] += sign * shape.vcpu_count
        self._held_units[row] += sign * (shape.vcpu_count + extra)
        self._held_memory_mib[row] += sign * shape.memory_mib
        self._held_watts[row] += sign * watts
        self._held_count[row] += sign
        self._settle(row)
        self._touch(row)

    @property
    def oldest_sent_s(self) -> float:
        """When the oldest of the vectors was sent; infinity without any."""
        if self._oldest_sent_s is None:
            self._oldest_sent_s = float(self.sent_s.min()) if self.node_ids else np.inf
        return self._oldest_sent_s

    @property
    def rank(self) -> IndexArray:
        """Each row's place by node id: what decides between equal scores."""
        if self._rank is None:
            order = sorted(range(len(self)), key=self.node_ids.__getitem__)
            self._rank = np.empty(len(self), np.intp)
            self._rank[order] = np.arange(len(self))
        return self._rank

    @property
    def usable(self) -> BoolArray:
        """Nodes in service and not under maintenance, as their SeD says."""
        return self._usable[: len(self)]

    @property
    def maintenance(self) -> BoolArray:
        """Nodes under maintenance."""
        return self._maintenance[: len(self)]

    @property
    def lots(self) -> LotArray:
        """What each node draws lots with."""
        return self._lot[: len(self)]

    @property
    def sent_s(self) -> FloatArray:
        """When each vector was sent."""
        return self._sent_s[: len(self)]

    @property
    def vcpu_free(self) -> FloatArray:
        """Virtual CPUs neither used nor held."""
        return self._left[_VCPU_FREE, : len(self.node_ids)]

    @property
    def memory_free_mib(self) -> FloatArray:
        """Memory neither used nor held."""
        return self._left[_MEMORY_FREE, : len(self.node_ids)]

    @property
    def power_watts(self) -> FloatArray:
        """Watts of each node now, and those held."""
        return self._left[_POWER, : len(self.node_ids)]

    def vcpus_asked(self, shape: VmShape) -> float | FloatArray:
        """Return what a VM takes of `vcpu_free`: a preserved vCPU takes a core's whole share."""
        if not shape.preserved_vcpus:
            return float(shape.vcpu_count)
        asked: FloatArray = shape.vcpu_count + shape.preserved_vcpus * (
            self._overcommit[: len(self)] - 1.0
        )
        return asked

    def measured_column(self, name: str, rows: IndexArray) -> FloatArray | None:
        """Return a measured column, less holds; None if the name is none."""
        index = _INDEX.get(name)
        return None if index is None else self._left[index, rows]

    def power_age_s(self, rows: IndexArray, now_s: float) -> FloatArray:
        """Return how old each power reading is."""
        age: FloatArray = now_s - self._read_s[rows]
        return age

    def measured_block(self, rows: IndexArray | slice, now_s: float, out: FloatArray) -> None:
        """Fill `out` with the measured columns and the age of the power reading, less holds."""
        count = len(MEASURED_COLUMNS)
        out[:count] = self._left[:, rows]
        out[count] = now_s - self._read_s[rows]

    def marginal_watts(self, vcpu_count: int) -> FloatArray:
        """Return what `vcpu_count` busy vCPUs would add on each node, waking it included.

        `P(u + du) - P(u)`, and for a node that is off its idle draw and its boot energy
        spread over `BOOT_HOLD_S`. Kept per vCPU count; rows that changed are worked out anew.
        """
        known = self._marginal_watts.get(vcpu_count)
        if known is None:
            watts = self._added_watts(vcpu_count, np.arange(len(self)))
        else:
            watts, position = known
            if position < len(self.touched):
                rows = np.array(sorted(set(self.touched[position:])), np.intp)
                watts[rows] = self._added_watts(vcpu_count, rows)
        self._marginal_watts[vcpu_count] = (watts, len(self.touched))
        return watts

    def _added_watts(self, vcpu_count: int, rows: IndexArray) -> FloatArray:
        measured, curve = self._measured[:, rows], self._curve[rows]
        cpu_count = np.maximum(measured[_INDEX["cpu_count"]], 1.0)
        load = measured[_INDEX["cpu_utilisation"]] + self._held_vcpu[rows] / cpu_count
        added = watts_at(curve, load + vcpu_count / cpu_count) - watts_at(curve, load)
        added = added.round(WATTS_DIGITS)
        is_off = 1.0 - measured[_INDEX["booted"]]
        if is_off.any():
            waking = curve[:, 0] + measured[_INDEX["boot_energy_joules"]] / BOOT_HOLD_S
            added = added + is_off * waking * (self._held_count[rows] <= 0)
        return added

    def _add(self, vector: EstimationVector) -> int:
        row = len(self.node_ids)
        self._rank = None
        if row == self._capacity:
            self._grow()
        self.node_ids.append(vector.node_id)
        self.vectors.append(vector)
        self.row_of[vector.node_id] = row
        self._lot[row] = lot_of(vector.node_id)
        self._begin_epoch()
        self._note_running(vector)
        return row

    def _settle(self, row: int) -> None:
        """Work out what is left on one node: as measured, less what is held."""
        self._left[:, row] = self._measured[:, row]
        if self._held_count[row]:
            self._left[_VCPU_FREE, row] -= self._held_units[row]
            self._left[_MEMORY_FREE, row] -= self._held_memory_mib[row]
            self._left[_POWER, row] += self._held_watts[row]
            self._left[_VM_COUNT, row] += self._held_count[row]

    def _row_arrays(self) -> tuple[FloatArray | BoolArray | LotArray, ...]:
        return (
            self._read_s, self._sent_s, self._usable, self._maintenance, self._overcommit,
            self._lot, self._curve, self._held_vcpu, self._held_units, self._held_memory_mib,
            self._held_watts, self._held_count,
        )  # fmt: skip

    def _grow(self) -> None:
        more = self._capacity
        self._capacity *= 2
        self._measured = np.concatenate((self._measured, np.zeros_like(self._measured)), axis=1)
        self._left = np.concatenate((self._left, np.zeros_like(self._left)), axis=1)
        (self._read_s, self._sent_s, self._held_vcpu, self._held_units, self._held_memory_mib,
         self._held_watts, self._held_count, self._overcommit) = (
            np.concatenate((column, np.zeros(more)))
            for column in (self._read_s, self._sent_s, self._held_vcpu, self._held_units,
                           self._held_memory_mib, self._held_watts, self._held_count,
                           self._overcommit)
        )  # fmt: skip
        self._usable = np.concatenate((self._usable, np.zeros(more, dtype=np.bool_)))
        self._maintenance = np.concatenate((self._maintenance, np.zeros(more, dtype=np.bool_)))
        self._lot = np.concatenate((self._lot, np.zeros(more, dtype=np.uint64)))
        self._curve = np.concatenate((self._curve, np.zeros((more, CURVE_POINTS))))

    def _note_running(self, vector: EstimationVector) -> None:
        for vm_id in vector.running:
            self.rows_of_vm.setdefault(vm_id, set()).add(vector.node_id)

    def _forget_running(self, vector: EstimationVector) -> None:
        for vm_id in vector.running:
            nodes = self.rows_of_vm.get(vm_id)
            if nodes is not None:
                nodes.discard(vector.node_id)
                if not nodes:
                    del self.rows_of_vm[vm_id]

    def _touch(self, row: int) -> None:
        self.touched.append(row)
        if len(self.touched) > TOUCHED_MAX:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.touched.clear()
        self._marginal_watts.clear()


def watts_at(curves: FloatArray, load: FloatArray) -> FloatArray:
    """Return each row's watts at its load in [0, 1], straight between the 11 points."""
    place = np.minimum(np.maximum(load, 0.0), 1.0) * (CURVE_POINTS - 1)
    below = np.minimum(place.astype(np.intp), CURVE_POINTS - 2)
    rows = np.arange(len(load))
    low = curves[rows, below]
    watts: FloatArray = low + (curves[rows, below + 1] - low) * (place - below)
    return watts


def _line(vector: EstimationVector) -> FloatArray:
    steps: FloatArray = np.linspace(vector.idle_watts, vector.peak_watts, CURVE_POINTS)
    return steps
