"""Union-find over the indices of array axes, which tells what goes together."""

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
        self._size = 0
        self._reasons: list[str] = []
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
        ids = np.arange(start, self._size)
        self._parent[ids] = ids
        self._reason[ids] = _FREE
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

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Merge the classes of ``first[i]`` and ``second[i]`` for every i."""
        if first is second or np.array_equal(first, second):
            return
        before = self.find(np.concatenate([first, second]))
        while True:
            first, second = self.find(first), self.find(second)
            differ = first != second
            if not differ.any():
                break
            # Where a class repeats, one assignment wins and the next round ties what is left.
            self._parent[np.maximum(first, second)[differ]] = np.minimum(first, second)[differ]
        # Only now, as a class may have been absorbed through several others in one round.
        np.minimum.at(self._reason, self.find(before), self._reason[before])

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Forbid the pruning of nodes, for a reason.

        Of a class's reasons the one that came up first is kept.
        """
        roots = np.unique(self.find(ids))
        roots = roots[self._reason[roots] == _FREE]
        if roots.size:
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._reason[roots] = self._reasons.index(reason)

    def frozen(self, ids: np.ndarray) -> np.ndarray:
        """Tell which nodes must not be pruned, bool[len(ids)]."""
        return self._reason[self.find(ids)] != _FREE

    def reason(self, node: int) -> str:
        """Return why a node is frozen, or the empty string."""
        number = self._reason[self.find(np.asarray([node]))[0]]
        return "" if number == _FREE else self._reasons[number]
