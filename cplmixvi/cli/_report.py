"""Keep stdout for the result: everything else goes to stderr, and only once the input has passed its checks."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from cplmixvi.cli._errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHATTY = ("lightning", "lightning.fabric", "lightning.pytorch", "scvi", "pooch")


class Reporter:
    """Lines for stderr.

    Lines are held back until :meth:`release`, so that bad input leaves one line and nothing else.

    Parameters
    ----------
    quiet
        Drop all lines.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._held: list[str] | None = []

    def say(self, text: str) -> None:
        """Write one line, now or when the lines are released."""
        if self.quiet:
            return
        if self._held is None:
            sys.stderr.write(f"cplmixvi: {one_line(text)}\n")
        else:
            self._held.append(text)

    def release(self) -> None:
        """Write what was held back; from now on write at once."""
        held, self._held = self._held or [], None
        for text in held:
            self.say(text)

    def warn(self, message, category, filename, lineno, file=None, line=None) -> None:
        """Take the place of :func:`warnings.showwarning`: our advice and scvi-tools', not talk between libraries."""
        talk = issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning)
        if not talk and ("cplmixvi" in filename or "scvi" in filename):
            self.say(f"warning: {message}")


class _Printed(io.TextIOBase):
    """What libraries print, for stderr; but not what scvi-tools prints of an exception that is raised anyway."""

    _drops = False

    def write(self, text: str) -> int:
        # A line is printed in several parts.
        self._drops = self._drops or text.startswith("Exception raised during training.")
        if not self._drops:
            sys.stderr.write(text)
        self._drops = self._drops and not text.endswith("\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


@contextmanager
def clean_stdout() -> Iterator[None]:
    """Send to stderr what libraries print, such as scvi-tools' progress bar."""
    with redirect_stdout(_Printed()):
        yield


@contextmanager
def swallowed() -> Iterator[None]:
    """Drop what libraries print and log while the input is checked."""
    with redirect_stdout(io.StringIO()):
        yield


@contextmanager
def calm_libraries(reporter: Reporter) -> Iterator[None]:
    """Quiet loggers, and warnings through ``reporter``; all as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        with swallowed():
            # Imported first, because they set the levels of their loggers when they are.
            import scvi  # noqa: F401
        warnings.simplefilter("default")
        warnings.showwarning = reporter.warn
        for name in _CHATTY:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


@contextmanager
def thread_limit(n_threads: int | None) -> Iterator[None]:
    """At most ``n_threads`` CPU threads in torch and in the linear algebra libraries; half of the cores if None.

    Never more than there are cores that this process may use: a second thread on a core that is busy with other work
    makes steps as small as these several times slower.
    """
    import torch
    from joblib import cpu_count
    from threadpoolctl import threadpool_limits

    n_cores = cpu_count()
    n_threads = min(n_threads or max(1, n_cores // 2), n_cores)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)
