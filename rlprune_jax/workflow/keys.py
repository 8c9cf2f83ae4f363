"""Random keys of the stages of a run."""

import jax

from rlprune_jax.checks import require_seed


def stage_key(seed: int, stage: str) -> jax.Array:
    """Return the random key of a stage.

    A function of the seed and its name alone.

    Raises:
        ValueError: the seed is no integer from 0 to 4294967295.
    """
    require_seed("seed", seed)
    number = int.from_bytes(stage.encode()[-4:], "big") % 2**31
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), len(stage))
