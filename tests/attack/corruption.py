"""Ways in which the bytes of a file go wrong."""

import os
import random
from collections.abc import Iterator

COUNT = int(os.environ.get("RLPRUNE_FUZZ", "40"))
"""Damages of each file that the suite tries; RLPRUNE_FUZZ=1000 makes a soak of it."""


def damages(content: bytes, count: int = COUNT, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield what was done, and what the file then holds; half of them flip one bit."""
    draw = random.Random(f"{seed} {len(content)}")
    size = max(len(content), 1)
    for number in range(count):
        at, length = draw.randrange(size), draw.randrange(1, 1 + min(64, size))
        rest = content[at + length :]
        kind = ("flip", "flip", "digit", "flip", "cut", "flip", "lose", "zero", "twice", "insert")[
            number % 10
        ]
        if kind == "flip":
            changed = bytearray(content)
            changed[at] ^= 1 << draw.randrange(8)
            yield f"bit flipped at {at}", bytes(changed)
        elif kind == "digit":
            places = [place for place, byte in enumerate(content) if chr(byte).isdigit()] or [at]
            at = draw.choice(places)
            other = (content[at] - 48 + draw.randrange(1, 10)) % 10 + 48
            yield f"digit changed at {at}", content[:at] + bytes([other]) + content[at + 1 :]
        elif kind == "cut":
            yield f"cut at {at}", content[:at]
        elif kind == "lose":
            yield f"{length} lost at {at}", content[:at] + rest
        elif kind == "zero":
            yield f"{length} zeros at {at}", content[:at] + b"\0" * length + rest
        elif kind == "twice":
            yield f"{length} twice at {at}", content[: at + length] + content[at:]
        else:
            yield f"inserted at {at}", content[:at] + draw.randbytes(length) + content[at:]
