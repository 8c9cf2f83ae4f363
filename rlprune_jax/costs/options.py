"""Options of the costs that have any."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlprune_jax.checks import (
    refuse_unless,
    require,
    require_above,
    require_count,
    require_expression,
    require_type,
)


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


def check_tile(tile: object) -> None:
    """Refuse a tile that is no pair of counts.

    Raises:
        ValueError: naming it.
    """
    pair = tuple(tile) if isinstance(tile, tuple) else tile
    wanted = "two integers of at least 1, such as Tile(8, 8)"
    require(isinstance(pair, tuple) and len(pair) == 2, "tile", pair, wanted)
    assert isinstance(pair, tuple)
    whole = all(isinstance(width, int) and not isinstance(width, bool) for width in pair)
    require(whole and min(pair) >= 1, "tile", pair, wanted)


def check_levels(levels: Sequence[float]) -> None:
    """Refuse fractions that do not rise to 1.

    Raises:
        ValueError: naming them.
    """
    several = isinstance(levels, Sequence) and not isinstance(levels, str)
    require(several, "levels", levels, "numbers that rise to 1")
    good = all(isinstance(each, int | float) and 0 <= each <= 1 for each in levels)
    rising = good and list(levels) == sorted(set(levels)) and len(levels) > 1 and levels[-1] == 1
    wanted = "must rise, from 0 or above to 1, two at least"
    refuse_unless("levels", tuple(levels), rising, wanted)


def check_options(options: "CostOptions") -> None:
    """Refuse options of costs that cannot be.

    Raises:
        TypeError: they are no ``CostOptions``.
        ValueError: naming the option, its value and what it may be.
    """
    require_type("options", options, CostOptions, "make it by costs.CostOptions(...)")
    check_tile(options.tile)
    check_levels(options.levels)
    for name in ("steps", "programs", "repeats", "function_asks", "latency_asks"):
        require_count(name, getattr(options, name))
    require_count("answers", options.answers, 2)
    require_above("time_limit", options.time_limit)
    require_expression("kv_layers", options.kv_layers)


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
