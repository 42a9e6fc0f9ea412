"""Warnings of libraries that are known and harmless here, silenced in one place. ``-v`` shows them.

Each row says why it is harmless. A warning that is not listed is shown.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

# (module whose code warns, category, start of the message as a regular expression; empty: any)
_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    ("transformers", FutureWarning, ""),  # peft uses transformers' old names
    ("torch", FutureWarning, ""),  # DeepSpeed and peft use torch's old names
    ("peft", FutureWarning, ""),
    ("deepspeed", FutureWarning, ""),
)
# (logger, words of the message)
_LOG_LINES: tuple[tuple[str, str], ...] = (
    # The LLM is frozen and its configuration is read, not written: gradient checkpointing is never on.
    ("transformers", "is_gradient_checkpointing"),
    # A run's length penalty is a setting of beam search; with one beam it has no effect, as the user expects.
    ("transformers", "generation flags are not valid and may be ignored"),
    ("transformers", "length_penalty"),
)


class _Known(logging.Filter):
    """Drops the log lines of the table."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self._pattern = re.compile("|".join(map(re.escape, words)))

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._pattern.search(record.getMessage())


def quiet_libraries() -> None:
    """Hide the warnings of the tables above in this process. Safe to repeat; does not import the libraries."""
    for module, category, start in _WARNINGS:
        warnings.filterwarnings("ignore", message=start, category=category, module=rf"{module}(\.|$)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns in every process that forks
