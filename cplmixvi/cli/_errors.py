"""Which failures are the user's to mend, and how they are told."""

from __future__ import annotations

import dis
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from anndata import AnnData

_PACKAGE = __name__.partition(".")[0]


class InputError(Exception):
    """Input that cannot be used; its text says what was given, what is allowed and how to mend it."""


def is_message(error: BaseException) -> bool:
    """Whether ``error`` is a message for the user and not a bug.

    A ValueError that a ``raise`` statement of this package made is a check speaking. One that comes out of a library,
    or of an expression of our own, is a bug whose traceback somebody needs to see.
    """
    if isinstance(error, InputError):
        return True
    trace = error.__traceback__
    if not isinstance(error, ValueError) or trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    from_package = frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE
    return from_package and dis.opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def one_line(text: object) -> str:
    """``text`` with all line breaks and runs of blanks made single blanks."""
    return " ".join(str(text).split())


def check_chosen(adata: AnnData, empty: np.ndarray, genes: np.ndarray, likelihood: str) -> None:
    """Raise InputError if cells, rows ``empty``, have no value in the selected genes, a mask ``(n_genes,)``."""
    if empty.size and likelihood != "bernoulli" and not genes.all():
        raise InputError(
            f"{empty.size} cells ({str(adata.obs_names[empty[0]])!r}, ...) are zero in all {genes.sum():,} selected "
            "genes; every cell needs a value; raise --hvg, or pass --hvg 0 for all genes."
        )


@contextmanager
def signals_exit() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into SystemExit(128 + signal), so that temporary files are removed.

    A KeyboardInterrupt would not do: the trainer catches it and exits with status 1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        raise SystemExit(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal; ignored under nohup, and not known on Windows.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
