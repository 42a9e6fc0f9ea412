"""Model folders that a library reads (transformers, tokenizers): no code of theirs runs, and what is wrong with them is one line.

Every ``from_pretrained`` call of the project says ``trust_remote_code=False``; a test reads the source for it. Without it the library asks on
stdin, and runs a folder's code on "y".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHOWN = 300  # letters of a library's message


@contextmanager
def reading(path: Path, remedy: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Any error of a library inside becomes ``kind``: names ``path``, what the library says in one line, and ``remedy``."""
    try:
        yield
    except Exception as error:  # for damaged files these libraries raise a dozen classes, bare Exception too
        words = " ".join((str(error) or type(error).__name__).split())
        raise kind(f"{path} cannot be read ({words[:MAX_SHOWN]}); {remedy}") from error


def read_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder, or of a .gguf file in it.

    Raises:
        ValueError: none there (for some families the library then makes an empty one), a damaged one, or one that brings code.
    """
    from transformers import AutoTokenizer

    remedy = "use a folder with the tokenizer files of its model"
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and '"auto_map"' in settings.read_text(encoding="utf-8", errors="replace"):
        remedy = (
            "it names code of its own (auto_map), which is never run: use a folder whose tokenizer transformers knows"
        )
    with reading(folder, f"no tokenizer there; {remedy}"):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, gguf_file=gguf_file
        )
        if not found("a b c", add_special_tokens=False)["input_ids"]:
            raise ValueError("it has no words")
    return found
