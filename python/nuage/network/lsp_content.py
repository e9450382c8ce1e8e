"""What a RBridge says of itself: from its state to the TLVs of its LSP fragments. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

from nuage.network.forwarding import Label, Nickname
from nuage.network.isis_auth import AUTH_TLV_BYTES
from nuage.network.isis_pdu import HEADER_BYTES
from nuage.network.isis_tlv import (
    AreaAddresses,
    CapabilitySubTlv,
    ExtendedReach,
    Hostname,
    InterestedLabels,
    LspBufferSize,
    NicknameRecord,
    Nicknames,
    ProtocolsSupported,
    Reach,
    RouterCapability,
    Tlv,
    Trees,
    TrillVersion,
    encode_tlvs,
)

REACHES_PER_TLV: Final = 9  # 26 bytes each with the link's IDs and the tested MTU
RANGES_PER_TLV: Final = 16  # 15 bytes each behind a 5-byte head
FRAGMENTS_MAX: Final = 256


def label_ranges(labels: Iterable[Label]) -> list[tuple[Label, Label]]:
    """Return `labels` as inclusive ranges, rising."""
    ranges: list[tuple[Label, Label]] = []
    for label in sorted(labels):
        if ranges and label == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], label)
        else:
            ranges.append((label, label))
    return ranges


def own_tlvs(
    *,
    hostname: str,
    record: NicknameRecord | None,
    reaches: Sequence[Reach],
    labels: Iterable[Label],
    takes_bytes: int,
) -> list[Tlv]:
    """Return all TLVs, the ones that every reader needs first.

    `takes_bytes` is what each trunk of ours carries: nobody's LSPs are to be longer.
    """
    about: list[CapabilitySubTlv] = [TrillVersion(), Trees()]
    if record is not None:
        about.insert(0, Nicknames((record,)))
    tlvs: list[Tlv] = [
        AreaAddresses(),
        ProtocolsSupported(),
        LspBufferSize(takes_bytes),
        Hostname(hostname),
        RouterCapability(tuple(about)),
    ]
    tlvs.extend(
        ExtendedReach(tuple(reaches[start : start + REACHES_PER_TLV]))
        for start in range(0, len(reaches), REACHES_PER_TLV)
    )
    if record is not None:
        tlvs.extend(_label_tlvs(record.nickname, label_ranges(labels)))
    return tlvs


def _label_tlvs(nickname: Nickname, ranges: Sequence[tuple[Label, Label]]) -> list[Tlv]:
    return [
        RouterCapability(
            tuple(
                InterestedLabels(nickname, first, last)
                for first, last in ranges[start : start + RANGES_PER_TLV]
            )
        )
        for start in range(0, len(ranges), RANGES_PER_TLV)
    ]


def fragments_of(
    tlvs: Sequence[Tlv], pdu_bytes_max: int
) -> tuple[dict[int, tuple[Tlv, ...]], bool]:
    """Return the TLVs by fragment, and whether all found room (256 fragments at most)."""
    room = pdu_bytes_max - HEADER_BYTES[18] - AUTH_TLV_BYTES
    fragments: list[list[Tlv]] = [[]]
    left = room
    for tlv in tlvs:
        size = len(encode_tlvs((tlv,)))
        if size > left:
            if len(fragments) == FRAGMENTS_MAX:
                return _numbered(fragments), False
            fragments.append([])
            left = room
        fragments[-1].append(tlv)
        left -= size
    return _numbered(fragments), True


def _numbered(fragments: Sequence[Sequence[Tlv]]) -> dict[int, tuple[Tlv, ...]]:
    return {number: tuple(tlvs) for number, tlvs in enumerate(fragments)}
