"""The played site's book of what it owns: the rules by which an answer of the quorum counts.

Answers can arrive late: after the lease had a gap in which others took over, or after a transfer
that they do not know of. Acting on such an answer runs a VM twice. Hence a ticket is drawn before
each question, and an answer counts only if nothing happened since. `daemon.guardian` does the same
by its lease's term; this world checks that the rule is enough.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nuage.quorum.lease import LeaseView
from nuage.quorum.model import Ownership


@dataclass(frozen=True, slots=True)
class Ticket:
    """The state of knowledge at which a question was asked."""

    generation: int
    change_count: int


class Holdings:
    """The objects of one site, by (kind, id), with the epoch each is owned under."""

    def __init__(self, view: LeaseView) -> None:
        self.view = view
        self._owned: dict[tuple[str, str], Ownership] = {}
        self._owned_generation = -1
        self._leaving: dict[tuple[str, str], int] = {}
        self._change_count = 0
        self._changed_at: dict[tuple[str, str], int] = {}

    def ticket(self) -> Ticket:
        """Return what to hand in with the answer to a question that is asked now."""
        return Ticket(self.view.generation, self._change_count)

    def acquired(self, owned: Iterable[Ownership]) -> None:
        """Take what the quorum confirmed as ours along with a lease that had a gap.

        To be called from `LeaseHolder`'s `acquired`, just before the view is renewed.
        """
        self._replace(owned, self.view.generation + 1)

    def learned(self, ticket: Ticket, owned: Iterable[Ownership]) -> bool:
        """Take the answer of `owners_of`; False: it is out of date, ask again."""
        if ticket != self.ticket():
            return False
        self._change_count += 1  # an answer to an older question must not undo this one
        self._replace(owned, ticket.generation)
        return True

    def gained(self, ticket: Ticket, ownership: Ownership) -> bool:
        """Take the answer of a claim or takeover; False: out of date, ask `owners_of`."""
        key = ownership.kind, ownership.id
        if ticket.generation != self.view.generation:
            return False
        if self._changed_at.get(key, 0) > ticket.change_count:
            return False  # transferred, perhaps, since this answer was given
        self._note_change(key)
        self._owned[key] = ownership
        return True

    def begin_transfer(self, kind: str, id: str, epoch: int) -> None:
        """Stop acting on an object, for good unless the quorum refuses the transfer."""
        self._note_change((kind, id))
        self._leaving[kind, id] = epoch

    def concluded(self, kind: str, id: str, now_owned: Ownership | None) -> None:
        """Take the definite answer to a transfer: `now_owned` is what is still ours."""
        self._note_change((kind, id))
        self._leaving.pop((kind, id), None)
        if now_owned is None:
            self._owned.pop((kind, id), None)
        else:
            self._owned[kind, id] = now_owned

    def epoch(self, kind: str, id: str, monotonic_s: float) -> int | None:
        """Return the epoch to act under, None: this site may not act on the object now."""
        if not self.view.is_held(monotonic_s) or self._owned_generation != self.view.generation:
            return None
        ownership = self._owned.get((kind, id))
        if ownership is None or (kind, id) in self._leaving:
            return None
        return ownership.epoch

    def all(self, monotonic_s: float) -> tuple[Ownership, ...]:
        """Return everything this site may act on now."""
        return tuple(
            ownership
            for (kind, id), ownership in self._owned.items()
            if self.epoch(kind, id, monotonic_s) is not None
        )

    def _note_change(self, key: tuple[str, str]) -> None:
        self._change_count += 1
        self._changed_at[key] = self._change_count

    def _replace(self, owned: Iterable[Ownership], generation: int) -> None:
        self._owned = {(ownership.kind, ownership.id): ownership for ownership in owned}
        self._owned_generation = generation
        for key, epoch in list(self._leaving.items()):
            ownership = self._owned.get(key)
            if ownership is None or ownership.epoch != epoch:
                del self._leaving[key]  # the transfer, or a takeover, has taken effect
