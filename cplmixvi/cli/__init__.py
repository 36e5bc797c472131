"""The command line: ``cplmixvi annotate``, ``cplmixvi traverse`` and ``cplmixvi demo``.

Nothing heavy is imported before a command runs, so that ``--help`` and wrong options answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the name of the program; those of the process by default.

    Returns
    -------
    0 when all went well, 2 after bad input (one line on stderr says what to mend), 130 after Ctrl-C.
    """
    from cplmixvi.cli._app import run

    return run(argv)
