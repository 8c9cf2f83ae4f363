"""Union-find over the indices of array axes, which tells what goes together."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

INPUT = 0
"""The node of every index that no pruning may remove because the function was given it."""

_FREE = np.iinfo(np.int64).max
"""In place of the number of a reason: the class may be pruned."""


class Nodes:
    """Grow a set of nodes, tied into classes.

    A class may be frozen for a reason.

    An *id array* is an int64 array with one node per index of an array's axis. Node ``INPUT`` is
    frozen from the start and stands for batch, positions and everything else that is never pruned,
    so that such axes cost one shared node instead of one per index.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._reason = np.full(1024, _FREE)
        self._generated = np.zeros(1024, bool)
        self._size = 0
        self._reasons: dict[str, int] = {}
        self.fresh(1)
        self.freeze(np.zeros(1, np.int64), "an input of the function")

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> np.ndarray:
        """Make ``count`` new untied nodes and return their ids, int64[count]."""
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            room = max(self._size, 2 * len(self._parent)) - len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(room, np.int64)])
            self._reason = np.concatenate([self._reason, np.full(room, _FREE)])
            self._generated = np.concatenate([self._generated, np.zeros(room, bool)])
        ids = np.arange(start, self._size)
        self._parent[ids] = ids
        self._reason[ids] = _FREE
        return ids

    def generate(self, count: int) -> np.ndarray:
        """Make nodes of a made-up axis, as by a broadcast."""
        ids = self.fresh(count)
        self._generated[ids] = True
        return ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the class representative of every node of ``ids``."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def tie(self, first: np.ndarray, second: np.ndarray, how: Callable[[], str] = str) -> None:
        """Merge the classes of ``first[i]`` and ``second[i]`` for every i.

        A class that is tied to a frozen one is frozen, but not merged with it, so that the reason
        of each says what froze it first.

        Args:
            first: id array.
            second: id array of the same length.
            how: says what ties them, for the reason of classes tied to an input.
        """
        if first is second or np.array_equal(first, second):
            return
        while True:
            first, second = self.find(first), self.find(second)
            free = [self._reason[each] == _FREE for each in (first, second)]
            if (mixed := free[0] != free[1]).any():
                roots = np.where(free[0], first, second)[mixed]
                causes = np.where(free[0], self._reason[second], self._reason[first])[mixed]
                for cause in np.unique(causes)[::-1].tolist():
                    self._reason[roots[causes == cause]] = self._passed_on(cause, how)
                continue
            differ = free[0] & (first != second)
            if not differ.any():
                return
            # Where a class repeats, one assignment wins and the next round ties what is left.
            self._parent[np.maximum(first, second)[differ]] = np.minimum(first, second)[differ]

    def _passed_on(self, cause: int, how: Callable[[], str]) -> int:
        """Return the number of the reason of what is tied to a frozen class."""
        if cause or not (means := how()):
            return cause
        return self._number(f"{next(iter(self._reasons))}, to which {means} ties it")

    def _number(self, reason: str) -> int:
        if reason not in self._reasons:
            self._reasons[reason] = len(self._reasons)
        return self._reasons[reason]

    def freeze(self, ids: np.ndarray, reason: str | Callable[[], str]) -> None:
        """Forbid the pruning of nodes, for a reason.

        Of a class's reasons the one that came up first is kept.
        """
        roots = np.unique(self.find(ids))
        roots = roots[self._reason[roots] == _FREE]
        if roots.size:
            self._reason[roots] = self._number(reason if isinstance(reason, str) else reason())

    def frozen(self, ids: np.ndarray) -> np.ndarray:
        """Tell which nodes must not be pruned, bool[len(ids)]."""
        return self._reason[self.find(ids)] != _FREE

    def reason(self, node: int) -> str:
        """Return why a node is frozen, or the empty string."""
        number = self._reason[self.find(np.asarray([node]))[0]]
        return "" if number == _FREE else list(self._reasons)[number]

    def census(self, marked: np.ndarray) -> "Census":
        """Count the classes as they are now.

        Args:
            marked: float64[nodes], how much each node adds to `Census.marks`.
        """
        roots = self.find(np.arange(self._size))
        counts = np.bincount(roots, minlength=self._size)
        made_up = np.bincount(roots, weights=self._generated[: self._size], minlength=self._size)
        marks = np.bincount(roots, weights=marked, minlength=self._size)
        return Census(counts[roots], (made_up == counts)[roots], marks[roots])


class Census(NamedTuple):
    """Count what is in the class of each node.

    Attributes:
        sizes: int64[nodes], nodes in the class.
        generated: bool[nodes], whether all of them were made up by broadcasts and the like.
        marks: float64[nodes], sum of what was asked about.
    """

    sizes: np.ndarray
    generated: np.ndarray
    marks: np.ndarray
