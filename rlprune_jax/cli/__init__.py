"""The command line ``rlprune`` and its subcommands.

They are ``prune``, ``sap``, ``study``, ``predict`` and ``inspect``. Options are read and wrong ones
answered before JAX is imported.
"""

import contextlib
import os
import sys
from types import TracebackType


def _say_interrupted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End with one line at Ctrl-C where no `interruptible` is yet or any more."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


# In the first module of a command that Python imports, so that there is no moment without it. Only
# an interrupt that nothing catches gets here, which no program goes on from.
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _say_interrupted
