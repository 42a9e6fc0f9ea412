"""Which files one `rb predict` opens, hashes and gives to loaders, as JSON; run twice, with an empty cache of digests and a full one.

usage: opened_files.py FOLDER OUT eval.predict's options ...    (FOLDER: only files below it are counted)

An opening is ours if no frame of an installed package stands between it and the innermost frame of `rb/`: reading a tokenizer or mapping a
safetensors file is a library's, though we called it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import transformers

import rb
import rb.checkpoints.checkpoint
import rb.core.fingerprints
import rb.model.weights.readers
from eval import predict

FOLDER = Path(sys.argv[1]).resolve()
OWN = str(Path(rb.__file__).parent)
opened: dict[str, Counter[str]] = {"ours": Counter(), "library": Counter(), "hashed": Counter(), "loaded": Counter()}


def on_open(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook: whose is this opening?"""
    if event != "open" or not isinstance(args[0], str | bytes | Path):
        return
    path = Path(str(args[0])).absolute()
    if not path.is_relative_to(FOLDER) or path.suffix in (".tmp", ".lock") or path.is_dir():
        return
    frame, whose = sys._getframe(1), "library"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OWN):
            whose = "ours"
            break
        if "site-packages" in name:
            break
        frame = frame.f_back
    opened[whose][str(path.relative_to(FOLDER))] += 1


def counted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, noting the file or folder that it is called for."""

    def call(path: Any, *args: Any, **options: Any) -> Any:
        if path is not None:
            name = getattr(function, "__qualname__", kind)
            opened[kind][f"{name} {Path(path).resolve().relative_to(FOLDER)}"] += 1
        return function(path, *args, **options)

    return call


for module in (rb.checkpoints.checkpoint, rb.core.fingerprints):
    module.file_sha256 = counted("hashed", module.file_sha256)  # type: ignore[attr-defined]
rb.model.weights.readers.load_file = counted("loaded", safetensors.torch.load_file)
rb.checkpoints.checkpoint.safe_open = counted("loaded", safetensors.safe_open)  # type: ignore[attr-defined]
for loader in (transformers.AutoTokenizer, transformers.Blip2Config, transformers.GenerationConfig):
    loader.from_pretrained = counted("loaded", loader.from_pretrained)  # type: ignore[method-assign]
sys.addaudithook(on_open)
found = []
for _ in range(2):
    assert predict.main(sys.argv[3:]) == 0
    found.append({kind: dict(counts) for kind, counts in opened.items()})
    for counts in opened.values():
        counts.clear()
Path(sys.argv[2]).write_text(json.dumps(found))
