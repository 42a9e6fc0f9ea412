"""What libraries say that is known and harmless here, silenced in one place. ``-v`` shows the warnings.

Each row says why it is harmless. A warning that is not listed is shown.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# (module whose code warns, category, start of the message as a regular expression; empty: any)
_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    ("transformers", FutureWarning, ""),  # peft uses transformers' old names
    ("torch", FutureWarning, ""),  # DeepSpeed and peft use torch's old names
    ("peft", FutureWarning, ""),
    ("deepspeed", FutureWarning, ""),
)


def quiet_libraries() -> None:
    """Hide the warnings of the table above in this process. Safe to repeat; does not import the libraries."""
    for module, category, start in _WARNINGS:
        warnings.filterwarnings("ignore", message=start, category=category, module=rf"{module}(\.|$)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns in every process that forks


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide what transformers prints while it loads a model: its table of keys, and its bar, which it draws even into a file."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
