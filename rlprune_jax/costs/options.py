"""Options of the costs that have any."""

from pathlib import Path
from typing import NamedTuple


class Tile(NamedTuple):
    """Hold how many channels the hardware takes at once.

    The default, 8 x 8, is that of a tensor core in half precision.

    Attributes:
        inputs: multiple that the channels summed over are rounded up to.
        outputs: multiple that the channels produced are rounded up to.
    """

    inputs: int = 8
    outputs: int = 8


DEFAULT_TILE = Tile()

LEVELS = (0.0, 0.3, 0.65, 1.0)
"""Fractions of the units that a latency table measures; 0 stands for a single unit."""


KV_LAYERS = r"(?:^|/)(?![^/]*quer)(?:[^/]*_)?(?:k|keys?|v|values?|kv)(?:_proj)?$"
"""Layers called k, key, v, value or kv, with or without more before a ``_`` or ``_proj`` behind."""


class CostOptions(NamedTuple):
    """Say how costs are counted and measured.

    Options are part of what a cost is remembered by, so every field must be hashable.

    Attributes:
        tile: channels that ``tiled_macs`` rounds up to.
        levels: fractions of the units that ``latency_table`` measures.
        cache: folder where ``latency_table`` keeps its timings, None for none.
        steps: widths of a group that ``latency`` tells apart in a search.
        programs: how many networks ``latency`` may compile in a search.
        repeats: timed calls of each measurement.
        kv_layers: regular expression of the layers that make keys and values, in
            ``kv_cache_bytes``.
        time_limit: seconds that ``latency`` or a function of the user may take for one candidate.
        answers: of a function of the user whose answers differ, how many are taken.
        function_asks: networks that a delivered mask may ask a function of the user for.
        latency_asks: networks that a delivered mask may compile to measure ``latency``.
    """

    tile: Tile = DEFAULT_TILE
    levels: tuple[float, ...] = LEVELS
    cache: Path | None = None
    steps: int = 4
    programs: int = 64
    repeats: int = 30
    kv_layers: str = KV_LAYERS
    time_limit: float = 60.0
    answers: int = 5
    function_asks: int = 128
    latency_asks: int = 12
