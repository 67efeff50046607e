"""Progress bars: tqdm's, in notebooks and terminals, where it is installed; or a function of the caller's."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Union

#: ``progress=``: None shows a bar to a person who waits, False none, True one in any case; a function is called with what is
#: done, what there is to do, and a text about it.
Progress = Union[None, bool, Callable[[int, int, str], object]]


def _is_watched() -> bool:
    """Whether a person sees a bar: in a notebook, or on a terminal."""
    shell = sys.modules.get("IPython")
    kernel = getattr(shell.get_ipython(), "kernel", None) if shell is not None else None
    return kernel is not None or bool(sys.stderr and sys.stderr.isatty())


@contextmanager
def shown(progress: Progress, title: str, unit: str) -> Iterator[Callable[[int, int, str], object] | None]:
    """The function to call with the progress, or None where nobody wants to know."""
    if callable(progress):
        yield progress
        return
    if progress is False or (progress is None and not _is_watched()):
        yield None
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without widgets, tqdm draws text, and says so
            from tqdm.auto import tqdm
    except ImportError:
        yield None
        return
    bar = tqdm(desc=title, unit=unit, total=0, delay=0 if progress else 0.5, unit_scale=True, leave=False)

    def show(done: int, total: int, text: str) -> None:
        bar.total = total
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        bar.close()
