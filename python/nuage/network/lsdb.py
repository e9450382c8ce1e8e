"""The link-state database and its flooding over point-to-point circuits (ISO 10589 §7.3).

Theory of operation: every LSP is kept as the bytes that came, so unknown TLVs travel on
untouched. Per circuit two sets: SRM, LSPs to send (again and again until acknowledged), and
SSN, LSPs to acknowledge or ask for in the next PSNP. A new adjacency gets CSNPs and, after a
short wait for the neighbour's own, all that it lacks; CSNPs are repeated now and then against
whatever was lost. An LSP without life left is a purge: its header is kept for a minute.

Fault model: a neighbour may flood (`RBridge` reads it no faster than a rate), name more LSPs or
RBridges than a campus has (those beyond are not taken), say or purge LSPs in our name (we answer
with a higher sequence, not faster than `OWN_RATE`), wrap sequence numbers (we go silent and start
again as ISO 10589 §7.3.16.1 says), or vanish (adjacency machine). Not defended: a holder of the
fabric key lying about itself, or purging what others say: they say it again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from nuage.network.isis_auth import AUTH_TLV_BYTES, Keyring, encode_signed
from nuage.network.isis_pdu import (
    CSNP,
    HEADER_BYTES,
    LSP_LEVEL_1,
    PSNP,
    SEQUENCE_MAX,
    Csnp,
    Lsp,
    Psnp,
    purge_of,
    with_lifetime,
)
from nuage.network.isis_tlv import LspEntries, LspId, LspSummary, SystemId, Tlv, find_all
from nuage.network.rate_limit import Rate, TokenBucket

LIFETIME_S: Final = 1200
REFRESH_S: Final = 900
ZERO_AGE_S: Final = 60
RETRANSMIT_S: Final = 2.0  # ISO says 5; our trunks have round trips of tens of milliseconds
CSNP_INTERVAL_S: Final = 30.0
CSNP_FIRST_S: Final = (0.3, 0.7)  # again so long after the first: the neighbour may report later
CSNP_WAIT_S: Final = 0.1  # how long a new circuit waits for the neighbour's CSNP before sending all
PACE_S: Final = 0.01
LSPS_PER_PACE_MAX: Final = 60  # 6,000 LSPs a second: a 1,000-RBridge database in 0.2 s
PSNP_DELAY_S: Final = 0.02
OWN_RATE: Final = Rate(
    per_s=5, burst=256
)  # answers to what is said in our name: all fragments once
OWN_WAIT_S: Final = 0.2  # until those that must wait are looked at again
ENTRY_COUNT_MAX: Final = 20_000  # a database of 1,000 RBridges has about 2,000 fragments
SYSTEM_COUNT_MAX: Final = (
    4096  # four times the campus that is promised; paths are worked out of all
)
LINES_PER_TLV: Final = LspEntries.LINES_MAX
FIRST: Final = b"\0\0"  # pseudonode and fragment of a system's first LSP
LSP_ID_MIN: Final = bytes(8)
LSP_ID_MAX: Final = b"\xff" * 8


@dataclass(slots=True)
class LspRecord:
    """One LSP as stored. `purged_until_s` is set once it has no life left."""

    lsp: Lsp
    raw: bytes
    expires_s: float
    purged_until_s: float | None = None

    def lifetime_s(self, now_s: float) -> int:
        """Return the life left, rounded up; 0 for a purge."""
        if self.purged_until_s is not None:
            return 0
        return max(1, min(LIFETIME_S, int(self.expires_s - now_s + 0.999)))


@dataclass(slots=True)
class CircuitFlood:
    """What is to be told on one circuit."""

    srm: dict[LspId, float] = field(default_factory=dict)  # LSP -> not before this time
    ssn: dict[LspId, LspSummary] = field(default_factory=dict)
    psnp_at_s: float = float("inf")
    csnp_at_s: float = 0.0
    csnp_count: int = 0
    pace_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FloodOutput:
    """PDUs to send on a circuit."""

    circuit: int
    raw: bytes


class Lsdb:
    """The database of one RBridge. `changed` holds the systems whose LSPs changed since read."""

    def __init__(
        self, system_id: SystemId, ring: Keyring, *, pdu_bytes_max: int, now_s: float
    ) -> None:
        self.records: dict[LspId, LspRecord] = {}
        self.changed: set[SystemId] = set()
        self.refused: dict[int, str] = {}  # circuits whose LSPs found no room since last read
        self.disputed: set[int] = set()  # circuits that said too much in our name since last read
        self.synchronised = False
        self.restarting = False  # what an older life of ours said is kept until we speak
        self._system_id = system_id
        self._ring = ring
        self.pdu_bytes_max = pdu_bytes_max  # of what we say
        self._circuits: dict[int, CircuitFlood] = {}
        self._own: dict[int, tuple[Tlv, ...]] = {}
        self._sequences: dict[int, int] = {}
        self._silent_until_s: dict[int, float] = {}
        self._next_age_s = now_s + REFRESH_S
        self._system_count = 0
        self._own_bucket = TokenBucket(OWN_RATE, now_s)
        self._unanswered: set[int] = set()  # fragments of ours

    # ---- circuits ----

    def circuit_up(self, circuit: int, now_s: float) -> None:
        """Begin with a new neighbour: tell it all we have."""
        flood = CircuitFlood(csnp_at_s=now_s)
        flood.srm = dict.fromkeys(self.records, now_s + CSNP_WAIT_S)
        self._circuits[circuit] = flood

    def circuit_down(self, circuit: int) -> None:
        """Forget a neighbour."""
        self._circuits.pop(circuit, None)

    @property
    def asking(self) -> bool:
        """Tell whether LSPs were asked for and have not come."""
        return any(not line.sequence for f in self._circuits.values() for line in f.ssn.values())

    # ---- what comes in ----

    def receive_lsp(self, circuit: int, lsp: Lsp, raw: bytes, now_s: float) -> bool:
        """Take an authentic LSP; return whether the database changed."""
        flood = self._circuits.get(circuit)
        if flood is None:
            return False  # no adjacency in state Report
        if lsp.lsp_id[:6] == self._system_id:
            return self._own_came_back(circuit, lsp, raw, now_s)
        record = self.records.get(lsp.lsp_id)
        if record is None:
            if lsp.lifetime_s == 0:  # nothing to purge: acknowledge, forget
                self._acknowledge(flood, lsp, now_s)
                return False
            if not self._has_room(circuit, lsp.lsp_id):
                return False
            self._store(lsp, raw, circuit, now_s)
            return True
        order = _compare(lsp, record)
        if order > 0:
            self._store(lsp, raw, circuit, now_s)
            return True
        if order == 0:
            flood.srm.pop(lsp.lsp_id, None)
            self._acknowledge(flood, lsp, now_s)
        else:
            flood.ssn.pop(lsp.lsp_id, None)
            flood.srm[lsp.lsp_id] = now_s
        return False

    def _has_room(self, circuit: int, lsp_id: LspId) -> bool:
        """Tell whether one more LSP may be kept; it is not acknowledged, and comes again."""
        if len(self.records) >= ENTRY_COUNT_MAX:
            self.refused[circuit] = f"more LSPs than {ENTRY_COUNT_MAX}"
        elif lsp_id[6:] == FIRST and self._system_count >= SYSTEM_COUNT_MAX:
            self.refused[circuit] = f"more RBridges than {SYSTEM_COUNT_MAX}"
        else:
            return True
        return False

    def _own_came_back(self, circuit: int, lsp: Lsp, raw: bytes, now_s: float) -> bool:
        """An LSP in our name: ours, an older life's, or a forgery. The highest number wins."""
        flood = self._circuits[circuit]
        fragment = lsp.lsp_id[7]
        record = self.records.get(lsp.lsp_id)
        current = record.lsp.sequence if record else 0
        if record is not None and _compare(lsp, record) == 0:
            flood.srm.pop(lsp.lsp_id, None)
            self._acknowledge(flood, lsp, now_s)
            return False
        if record is not None and lsp.sequence < current:
            flood.srm[lsp.lsp_id] = now_s
            return False
        is_fragment = lsp.lsp_id[6] == 0  # we never are a pseudonode
        if is_fragment:
            self._sequences[fragment] = lsp.sequence
        if self.restarting:
            if lsp.lifetime_s and (record is None or lsp.sequence > current):
                self._store(lsp, raw, circuit, now_s)
            return True
        is_said = is_fragment and fragment in self._own
        if not self._own_bucket.take(now_s):
            self.disputed.add(circuit)
            if is_said:
                self._unanswered.add(fragment)
                self._next_age_s = min(self._next_age_s, now_s + OWN_WAIT_S)
        elif is_said:
            self._originate(fragment, now_s)
        elif lsp.lifetime_s:
            self._store(purge_of(lsp), None, None, now_s)
        else:
            self._acknowledge(flood, lsp, now_s)
        return True

    def _store(self, lsp: Lsp, raw: bytes | None, circuit: int | None, now_s: float) -> None:
        """Keep an LSP and set out to tell all other circuits."""
        if raw is None:
            raw = encode_signed(lsp, self._ring)
            lsp = replace(lsp, checksum=int.from_bytes(raw[24:26], "big"))
        if lsp.lsp_id not in self.records:
            self._system_count += lsp.lsp_id[6:] == FIRST
        purged = now_s + ZERO_AGE_S if lsp.lifetime_s == 0 else None
        lifetime_s = min(lsp.lifetime_s, LIFETIME_S)
        self.records[lsp.lsp_id] = LspRecord(lsp, raw, now_s + lifetime_s, purged)
        self._next_age_s = min(self._next_age_s, purged or now_s + lifetime_s)
        self.changed.add(lsp.lsp_id[:6])
        for number, flood in self._circuits.items():
            flood.ssn.pop(lsp.lsp_id, None)
            if number == circuit:
                flood.srm.pop(lsp.lsp_id, None)
                self._acknowledge(flood, lsp, now_s)
            else:
                flood.srm[lsp.lsp_id] = now_s

    def _acknowledge(self, flood: CircuitFlood, lsp: Lsp, now_s: float) -> None:
        flood.ssn[lsp.lsp_id] = LspSummary(lsp.lifetime_s, lsp.lsp_id, lsp.sequence, lsp.checksum)
        flood.psnp_at_s = min(flood.psnp_at_s, now_s + PSNP_DELAY_S)

    def receive_csnp(self, circuit: int, csnp: Csnp, now_s: float) -> None:
        """Compare the neighbour's list with ours over its range."""
        flood = self._circuits.get(circuit)
        if flood is None:
            return
        listed = set()
        for line in _lines(csnp.tlvs):
            listed.add(line.lsp_id)
            self._compare_line(flood, line, now_s)
        for lsp_id, record in self.records.items():
            missing = csnp.first <= lsp_id <= csnp.last and lsp_id not in listed
            if missing and record.purged_until_s is None:
                flood.srm[lsp_id] = now_s
        if csnp.last == LSP_ID_MAX:
            self.synchronised = True

    def receive_psnp(self, circuit: int, psnp: Psnp, now_s: float) -> None:
        """Take acknowledgements and requests."""
        flood = self._circuits.get(circuit)
        if flood is None:
            return
        for line in _lines(psnp.tlvs):
            self._compare_line(flood, line, now_s)

    def _compare_line(self, flood: CircuitFlood, line: LspSummary, now_s: float) -> None:
        record = self.records.get(line.lsp_id)
        if record is None:
            own = line.lsp_id[:6] == self._system_id and not self.restarting
            if line.lifetime_s and line.sequence and not own:
                flood.ssn[line.lsp_id] = LspSummary(0, line.lsp_id, 0, 0)
                flood.psnp_at_s = min(flood.psnp_at_s, now_s)
            return
        order = _compare_summary(line, record)
        if order == 0:
            flood.srm.pop(line.lsp_id, None)
        elif order < 0:
            flood.ssn.pop(line.lsp_id, None)
            flood.srm[line.lsp_id] = now_s
        else:
            flood.srm.pop(line.lsp_id, None)
            flood.ssn[line.lsp_id] = LspSummary(
                record.lifetime_s(now_s), line.lsp_id, record.lsp.sequence, record.lsp.checksum
            )
            flood.psnp_at_s = min(flood.psnp_at_s, now_s)

    # ---- our own ----

    def originate(self, fragments: dict[int, tuple[Tlv, ...]], now_s: float) -> None:
        """Say `fragments` of ourselves; unchanged ones are not repeated, missing ones purged."""
        gone = [number for number in self._own if number not in fragments]
        fresh = [n for n, tlvs in fragments.items() if self._own.get(n) != tlvs]
        self._own = dict(fragments)
        for number in gone:
            record = self.records.get(self._own_id(number))
            if record is not None:
                self._store(purge_of(record.lsp), None, None, now_s)
        for number in fresh:
            self._originate(number, now_s)

    def use(self, ring: Keyring, now_s: float) -> None:
        """Sign with another ring; what we said of ourselves is said again under its key."""
        before, self._ring = self._ring, ring
        if before.signing_key != ring.signing_key:
            for number in tuple(self._own):
                self._originate(number, now_s)

    def withdraw(self, now_s: float) -> None:
        """Purge all we said of ourselves: we are leaving."""
        self.originate({}, now_s)

    def _own_id(self, fragment: int) -> LspId:
        return self._system_id + bytes((0, fragment))

    def _originate(self, fragment: int, now_s: float) -> None:
        if now_s < self._silent_until_s.get(fragment, 0.0):
            return
        lsp_id = self._own_id(fragment)
        sequence = self._sequences.get(fragment, 0) + 1
        if sequence > SEQUENCE_MAX:
            # ISO 10589 §7.3.16.1: purge, be silent until every copy is gone, begin again at 1.
            self._silent_until_s[fragment] = now_s + LIFETIME_S + ZERO_AGE_S
            self._next_age_s = min(self._next_age_s, self._silent_until_s[fragment])
            self._sequences[fragment] = 0
            last = Lsp(lsp_id, SEQUENCE_MAX, 0, (), LSP_LEVEL_1)
            self._store(last, None, None, now_s)
            return
        self._sequences[fragment] = sequence
        lsp = Lsp(lsp_id, sequence, LIFETIME_S, self._own[fragment], LSP_LEVEL_1)
        self._store(lsp, None, None, now_s)
        self._next_age_s = min(self._next_age_s, now_s + REFRESH_S)

    # ---- time ----

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        deadline = self._next_age_s
        for flood in self._circuits.values():
            deadline = min(deadline, flood.csnp_at_s)
            if flood.ssn:
                deadline = min(deadline, flood.psnp_at_s)
            if flood.srm:
                deadline = min(deadline, max(flood.pace_at_s, min(flood.srm.values())))
        return deadline

    def tick(self, now_s: float) -> list[FloodOutput]:
        """Age the database, then return what is to be sent."""
        if now_s >= self._next_age_s:
            self._age(now_s)
        out: list[FloodOutput] = []
        for number, flood in self._circuits.items():
            if now_s >= flood.csnp_at_s:
                early = flood.csnp_count < len(CSNP_FIRST_S)
                wait_s = CSNP_FIRST_S[flood.csnp_count] if early else CSNP_INTERVAL_S
                flood.csnp_at_s, flood.csnp_count = now_s + wait_s, flood.csnp_count + 1
                out.extend(FloodOutput(number, raw) for raw in self._csnps(now_s))
            if flood.srm and now_s >= flood.pace_at_s:
                out.extend(FloodOutput(number, raw) for raw in self._due_lsps(flood, now_s))
            if flood.ssn and now_s >= flood.psnp_at_s:
                out.extend(FloodOutput(number, raw) for raw in self._psnps(flood))
        return out

    def _age(self, now_s: float) -> None:
        next_s = now_s + REFRESH_S
        for lsp_id, record in list(self.records.items()):
            if record.purged_until_s is not None:
                if now_s >= record.purged_until_s:
                    del self.records[lsp_id]
                    self._system_count -= lsp_id[6:] == FIRST
                    for flood in self._circuits.values():
                        flood.srm.pop(lsp_id, None)
                else:
                    next_s = min(next_s, record.purged_until_s)
                continue
            own = lsp_id[:6] == self._system_id
            due_s = record.expires_s - (LIFETIME_S - REFRESH_S if own else 0)
            if now_s < due_s:
                next_s = min(next_s, due_s)
            elif own and lsp_id[7] in self._own:
                self._originate(lsp_id[7], now_s)
            else:
                self._store(purge_of(record.lsp), None, None, now_s)
        self._unanswered &= self._own.keys()
        while self._unanswered and self._own_bucket.take(now_s):
            self._originate(self._unanswered.pop(), now_s)
        if self._unanswered:
            next_s = min(next_s, now_s + OWN_WAIT_S)
        for fragment, silent_s in list(self._silent_until_s.items()):
            if now_s >= silent_s:
                del self._silent_until_s[fragment]
                if fragment in self._own:
                    self._originate(fragment, now_s)
            else:
                next_s = min(next_s, silent_s)
        self._next_age_s = next_s

    def _due_lsps(self, flood: CircuitFlood, now_s: float) -> Iterator[bytes]:
        due = [lsp_id for lsp_id, not_before_s in flood.srm.items() if now_s >= not_before_s]
        for lsp_id in due[:LSPS_PER_PACE_MAX]:
            record = self.records.get(lsp_id)
            if record is None:
                del flood.srm[lsp_id]
                continue
            flood.srm[lsp_id] = now_s + RETRANSMIT_S
            yield with_lifetime(record.raw, record.lifetime_s(now_s))
        if len(due) > LSPS_PER_PACE_MAX:  # only a big burst is spaced; news goes out at once
            flood.pace_at_s = now_s + PACE_S

    def _lines_per_pdu(self, kind: int) -> int:
        room = self.pdu_bytes_max - HEADER_BYTES[kind] - AUTH_TLV_BYTES
        tlvs, left = divmod(room, 2 + 16 * LINES_PER_TLV)
        return tlvs * LINES_PER_TLV + max(0, (left - 2) // 16)

    def _csnps(self, now_s: float) -> Iterator[bytes]:
        """Yield CSNPs that together cover all LSP IDs."""
        per_pdu = self._lines_per_pdu(CSNP)
        ids = sorted(self.records)
        first = LSP_ID_MIN
        for start in range(0, max(len(ids), 1), per_pdu):
            chunk = ids[start : start + per_pdu]
            is_last = start + per_pdu >= len(ids)
            last = LSP_ID_MAX if is_last else chunk[-1]
            lines = [self._summary(lsp_id, now_s) for lsp_id in chunk]
            source = self._system_id + b"\0"
            yield encode_signed(Csnp(source, first, last, _entry_tlvs(lines)), self._ring)
            first = (int.from_bytes(last, "big") + 1 & (1 << 64) - 1).to_bytes(8, "big")

    def _summary(self, lsp_id: LspId, now_s: float) -> LspSummary:
        record = self.records[lsp_id]
        return LspSummary(
            record.lifetime_s(now_s), lsp_id, record.lsp.sequence, record.lsp.checksum
        )

    def _psnps(self, flood: CircuitFlood) -> Iterator[bytes]:
        per_pdu = self._lines_per_pdu(PSNP)
        lines = list(flood.ssn.values())
        flood.ssn = {}
        flood.psnp_at_s = float("inf")
        for start in range(0, len(lines), per_pdu):
            tlvs = _entry_tlvs(lines[start : start + per_pdu])
            yield encode_signed(Psnp(self._system_id + b"\0", tlvs), self._ring)


def _lines(tlvs: tuple[Tlv, ...]) -> Iterable[LspSummary]:
    for entries in find_all(tlvs, LspEntries):
        yield from entries.lines


def _entry_tlvs(lines: list[LspSummary]) -> tuple[Tlv, ...]:
    return tuple(
        LspEntries(tuple(lines[start : start + LINES_PER_TLV]))
        for start in range(0, len(lines), LINES_PER_TLV)
    )


def _rank(sequence: int, lifetime_s: int, checksum: int) -> tuple[int, bool, int]:
    """Order of freshness (ISO 10589 §7.3.16): number, then purged before alive.

    Two living LSPs of one number and different checksums are one confusion: the higher
    checksum wins everywhere, so that all databases agree until the originator speaks again.
    """
    return (sequence, lifetime_s == 0, 0 if lifetime_s == 0 else checksum)


def _compare_ranks(a: tuple[int, bool, int], b: tuple[int, bool, int]) -> int:
    return (a > b) - (a < b)


def _compare(lsp: Lsp, record: LspRecord) -> int:
    """Return 1 when `lsp` is newer than what is stored, 0 when the same, -1 when older."""
    return _compare_ranks(_rank(lsp.sequence, lsp.lifetime_s, lsp.checksum), _record_rank(record))


def _compare_summary(line: LspSummary, record: LspRecord) -> int:
    return _compare_ranks(
        _rank(line.sequence, line.lifetime_s, line.checksum), _record_rank(record)
    )


def _record_rank(record: LspRecord) -> tuple[int, bool, int]:
    alive = 0 if record.purged_until_s is not None else 1
    return _rank(record.lsp.sequence, alive, record.lsp.checksum)
