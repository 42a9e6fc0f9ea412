"""Model folders that a library reads (transformers, tokenizers): no code of theirs runs, and what is wrong with them is one line.

Every ``from_pretrained`` call of the project says ``trust_remote_code=False``; a test reads the source for it. Without it the library asks on
stdin, and runs a folder's code on "y".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.core.quiet import quiet_loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_SHOWN = 300  # letters of a library's message


@contextmanager
def reading(path: Path | str, remedy: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
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


def read_model(
    kind: Any, folder: Path, field: str, dtype: torch.dtype | None = None, not_used: tuple[str, ...] = ()
) -> Any:
    """A model of a local folder, all of whose numbers are from its files: the library draws at random what a folder lacks, and only warns.

    Args:
        kind: a class of transformers with ``from_pretrained``.
        field: what names the folder, for messages.
        dtype: of the weights; none for that of the library.
        not_used: beginnings of names that the caller has no use for, so that they may be missing.

    Raises:
        ValueError: a damaged folder, another kind of model, or one that lacks tensors.
    """
    name = kind.__name__
    with reading(f"{field}: {folder}", f"give the folder of a {name}, with all its files"), quiet_loading():
        try:
            model, told = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" in str(error):  # the library's own words are about that setting
                raise ValueError(
                    f"its tensors have other shapes than those of the {name} in its config.json"
                ) from error
            raise
        missing = sorted(key for key in told["missing_keys"] if not key.startswith(not_used))
        if missing:
            raise ValueError(f"it lacks {len(missing)} tensors of a {name}, the first {missing[0]}")
    return model
