"""A growing Merkle tree: roots and proofs for any size so far (RFC 9162 §2.1).

The root of the whole tree needs its peaks only (`verify.Peaks`), which are held here. Proofs need
the complete subtrees inside it: those that were added last are held too, the others are asked of
whoever keeps them. A subtree is named by its height and its number from the left: subtree `n` of
height `h` is over the leaves from n * 2^h on.
"""

from collections.abc import Callable, Iterator

from nuage.errors import NotFound
from nuage.trust.verify import Peaks, node_hash, tree_root

KeptNode = Callable[[int, int], bytes]  # of a height, and a number


def _nothing_kept(height: int, number: int) -> bytes:
    raise NotFound("subtree", f"{number} of height {height}")


class MerkleTree:
    """Hashes of a growing tree. `kept` tells what `forget` has given away."""

    def __init__(self, kept: KeptNode = _nothing_kept, *, size: int = 0) -> None:
        self._kept = kept
        self._peaks = Peaks(size, [kept(height, number) for height, number in peaks_of(size)])
        self._fresh: dict[tuple[int, int], bytes] = {}

    @property
    def size(self) -> int:
        """Return how many leaves there are."""
        return self._peaks.size

    def append(self, leaf: bytes) -> int:
        """Add a leaf's hash and return its index."""
        index = self._peaks.size
        for height, node in enumerate(self._peaks.append(leaf)):
            self._fresh[height, index >> height] = node
        return index

    @property
    def fresh(self) -> dict[tuple[int, int], bytes]:
        """Return the complete subtrees that nobody else keeps yet."""
        return self._fresh

    def forget(self) -> None:
        """Let `fresh` go: it is kept elsewhere now."""
        self._fresh = {}

    def leaf(self, index: int) -> bytes:
        """Return a leaf's hash."""
        return self._hash(index, index + 1)

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` leaves."""
        if size is None or size == self.size:
            return self._peaks.root()
        return self._hash(0, size) if size else tree_root(())

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the path that proves leaf `index` (RFC 9162 §2.1.3.1), leaf upwards.

        Raises:
            NotFound: there is no such leaf in a tree of `size`.
        """
        count = self.size if size is None else size
        if not 0 <= index < count <= self.size:
            raise NotFound("receipt", str(index))
        path: list[bytes] = []
        start, end = 0, count
        while end - start > 1:
            split = start + _largest_power_below(end - start)
            if index < split:
                path.append(self._hash(split, end))
                end = split
            else:
                path.append(self._hash(start, split))
                start = split
        return tuple(reversed(path))

    def consistency(self, old_size: int, new_size: int | None = None) -> tuple[bytes, ...]:
        """Return what proves that the old tree begins the new one (RFC 9162 §2.1.4.1).

        Raises:
            NotFound: a size is beyond what there is.
        """
        count = self.size if new_size is None else new_size
        if not 0 <= old_size <= count <= self.size:
            raise NotFound("tree of size", str(old_size))
        if old_size in {0, count}:
            return ()
        path: list[bytes] = []
        start, end, is_whole = 0, count, True
        while end != old_size:
            split = start + _largest_power_below(end - start)
            if old_size <= split:
                path.append(self._hash(split, end))
                end = split
            else:
                path.append(self._hash(start, split))
                start, is_whole = split, False
        if not is_whole:
            path.append(self._hash(start, end))
        return tuple(reversed(path))

    def _hash(self, start: int, end: int) -> bytes:
        """Return the hash of leaves `start` to `end`; `start` is a multiple of its power."""
        size = end - start
        height = size.bit_length() - 1
        if size == 1 << height:
            name = height, start >> height
            return self._fresh.get(name) or self._kept(*name)
        split = start + _largest_power_below(size)
        return node_hash(self._hash(start, split), self._hash(split, end))


def peaks_of(size: int) -> Iterator[tuple[int, int]]:
    """Yield height and number of the largest complete subtrees of a tree, from the left."""
    start = 0
    for height in range(size.bit_length() - 1, -1, -1):
        if size >> height & 1:
            yield height, start >> height
            start += 1 << height


def _largest_power_below(size: int) -> int:
    """Return the largest power of two that is less than `size` (above 1)."""
    return 1 << ((size - 1).bit_length() - 1)
