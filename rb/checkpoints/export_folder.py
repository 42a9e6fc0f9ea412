"""The layout of an export, and how our parameter names become PEFT's and come back. No writing, no model.

    DIR/export.json                  what it is: format, run, step, base, modalities
    DIR/README.md                    the card of the whole
    DIR/<modality>/                  everything of one modality, usable alone (beside its base model)
        adapter_config.json, adapter_model.safetensors   a PEFT adapter of the Q-Former and the LLM
        parts.safetensors            query tokens, PaFE, projections, heads; `point_projection` for clouds
        modality.json                settings: model, decoding, prompt tokens, identity of the foundation
        preprocessor_config.json     image processor; README.md: model card; merged/: a whole BLIP-2 folder (`--merge`)
    DIR/point_bert/                  the frozen point encoder in its original names, where a modality reads points

Used by `writing.py` and, to load an export, by `rb/api/model.py`. `files_of` is the list of what an export is made of; `rb push` sends
these files and no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rb.core.config import DecodeConfig, FoundationConfig, LoraConfig, ModelConfig
from rb.core.modality import MODALITIES, in_table_order
from rb.core.run_file import from_tree
from rb.core.strict_json import count, read, texts
from rb.core.tensor_files import read_tensor_file

FORMAT = 1
EXPORT_FILE = "export.json"
MODALITY_FILE = "modality.json"
PARTS_FILE = "parts.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
CARD_FILE = "README.md"
POINT_FOLDER = "point_bert"
MERGED_FOLDER = "merged"
POINT_WEIGHTS = "point_bert.safetensors"
_MODALITY_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PARTS_FILE, MODALITY_FILE, PROCESSOR_FILE, CARD_FILE)
# What transformers writes of a model and its tokenizer.
_MERGED_FILES = re.compile(
    r"(generation_|preprocessor_|processor_|tokenizer_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"tokenizer\.(json|model)|spiece\.model|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.jinja"
)
_PEFT = "base_model.model."
_BLIP2 = "blip2."


class ExportError(ValueError):
    """A folder cannot be exported, or is not an export; the message says why and what to do."""


def split_names(names: Iterable[str], modality: str, adapter_name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Our names of the parameters that ``modality`` uses -> (names in its PEFT adapter, names in its ``parts.safetensors``).

    Args:
        adapter_name: of the adapter that the modality uses; the shared one is written for each modality that uses it.
    """
    adapter, parts = {}, {}
    for name in names:
        if name.startswith(_BLIP2) and ".lora_" in name:
            adapter[name] = _PEFT + name.removeprefix(_BLIP2).replace(f".{adapter_name}.", ".")
        else:
            parts[name] = name.removeprefix(f"parts.{modality}.")
    return adapter, parts


@dataclass(frozen=True)
class ModalityExport:
    """One modality's folder, read.

    Attributes:
        settings: of ``modality.json``.
        tensors: the trained parameters that it uses, by our names.
    """

    folder: Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def modality(self) -> str:
        """Its name."""
        return str(self.settings["modality"])


@dataclass(frozen=True)
class Export:
    """An export, whole or one modality of it, as a configuration without foundation and the trained parameters by our names."""

    modalities: tuple[str, ...]
    model: ModelConfig
    decode: DecodeConfig
    seed: int
    run: str
    step: int
    base: str
    fingerprints: dict[str, str]
    tensors: dict[str, Tensor]
    point_encoder: Path | None


def is_export(folder: Path) -> bool:
    """Whether a folder is an export or one modality's folder of one."""
    return (folder / EXPORT_FILE).is_file() or (folder / MODALITY_FILE).is_file()


def modality_folders(folder: Path) -> list[Path]:
    """The modality folders of an export (one, if it is such a folder itself).

    Raises:
        ExportError: it is neither; a listed folder is missing.
    """
    if (folder / MODALITY_FILE).is_file():
        return [folder]
    if not (folder / EXPORT_FILE).is_file():
        raise ExportError(
            f"{folder}: no export (neither {EXPORT_FILE} nor {MODALITY_FILE} is there); make one with rb export RUN_DIR --out DIR"
        )
    listed = _read(folder / EXPORT_FILE).get("modalities", [])
    if texts(listed):
        raise ExportError(f"{folder / EXPORT_FILE}: field 'modalities' {texts(listed)}; export again")
    folders = [folder / Path(str(name)).name for name in listed]
    for one in folders:
        if not (one / MODALITY_FILE).is_file():
            raise ExportError(f"{one / MODALITY_FILE}: missing, though {EXPORT_FILE} lists it; export again")
    return folders


def files_of(folder: Path) -> list[Path]:
    """The files that an export, or one modality's folder of one, is made of, in order of names; hidden files are left out.

    Raises:
        ExportError: it is none, a listed folder is missing, or something else lies in it: a link, a file that no export has.
    """
    whole = not (folder / MODALITY_FILE).is_file()
    roots = {one.relative_to(folder).as_posix() for one in modality_folders(folder)}
    found, strangers = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *(name for name in names if not name.startswith("."))):
            path = Path(place) / name
            relative = path.relative_to(folder)
            if path.is_symlink():
                strangers.append(f"{relative.as_posix()} (a link)")
            elif name in names and path.is_file() and _belongs(relative, roots, whole):
                found.append(path)
            elif name in names:
                strangers.append(relative.as_posix())
    if strangers:
        shown = ", ".join(sorted(strangers)[:10]) + (", ..." if len(strangers) > 10 else "")
        raise ExportError(
            f"{folder}: holds what an export does not have: {shown}; move it elsewhere (nothing was sent)"
        )
    return sorted(found)


def _belongs(relative: Path, roots: Iterable[str], whole: bool) -> bool:
    """Whether an export has a file at this place."""
    within, name = relative.parent.as_posix(), relative.name
    if within in roots:
        return name in _MODALITY_FILES and (within == "." or within in MODALITIES)
    if within == ".":
        return name in (EXPORT_FILE, CARD_FILE)
    if within == POINT_FOLDER and whole:
        return name in ("config.json", POINT_WEIGHTS)
    merged = relative.parent.name == MERGED_FOLDER and relative.parent.parent.as_posix() in roots
    return merged and _MERGED_FILES.fullmatch(name) is not None


def read_modality(folder: Path) -> ModalityExport:
    """One modality's folder; ``ExportError`` names the file that is missing or damaged."""
    settings = _read(folder / MODALITY_FILE)
    _check_settings(settings, folder / MODALITY_FILE)
    adapter_name = from_tree(LoraConfig, settings["model"]["lora"]).adapter_of(str(settings["modality"]))
    try:
        adapter, parts = (read_tensor_file(folder / name) for name in (ADAPTER_WEIGHTS, PARTS_FILE))
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder}: its weights cannot be read ({error}); copy or export it again") from error
    tensors = {}
    for name, tensor in adapter.items():
        stem, kind, _ = name.removeprefix(_PEFT).rpartition(".weight")
        if not kind:
            raise ExportError(f"{folder / ADAPTER_WEIGHTS}: holds {name}, which is no weight of LoRA; export again")
        tensors[f"{_BLIP2}{stem}.{adapter_name}.weight"] = tensor
    ours = settings["parameters"]
    for name, tensor in parts.items():
        if name not in ours:
            raise ExportError(f"{folder / PARTS_FILE}: holds {name}, which {MODALITY_FILE} does not list; export again")
        tensors[ours[name]] = tensor
    return ModalityExport(folder, settings, tensors)


def read_export(folder: Path) -> Export:
    """A whole export or one modality's folder.

    Raises:
        ExportError: it is none, incomplete, or its folders are of different runs.
    """
    found = [read_modality(one) for one in modality_folders(folder)]
    if not found:
        raise ExportError(f"{folder / EXPORT_FILE}: lists no modality; export again")
    first = found[0].settings
    tensors: dict[str, Tensor] = {}
    for one in found:
        if any(one.settings[key] != first[key] for key in ("model", "run", "step")):
            raise ExportError(f"{one.folder}: exported from another run or step than {found[0].folder}; export again")
        tensors |= one.tensors
    modalities = in_table_order(one.modality for one in found)
    point_encoder = next(
        (p for p in (folder / POINT_FOLDER, folder.parent / POINT_FOLDER) if (p / "config.json").is_file()), None
    )
    model = dict(first["model"]) | {"train_modalities": list(modalities)}
    return Export(
        modalities,
        from_tree(ModelConfig, model),
        from_tree(DecodeConfig, first["decode"]),
        int(first["seed"]),
        str(first["run"]),
        int(first["step"]),
        str(first["base"]),
        {part: str(value) for part, value in first["foundation"].items()},
        tensors,
        point_encoder,
    )


def find_foundation(folder: Path, base: str) -> FoundationConfig:
    """The foundation in a folder of the layout ``blip2-*/ text_branch/ point_bert/``.

    Where it holds several BLIP-2 folders, ``base`` (a hub id; its last part counts) says which one.

    Raises:
        ExportError: no folder, or no BLIP-2 in it.
    """
    blip2 = sorted(p for p in folder.glob("blip2-*") if (p / "config.json").is_file())
    named = [p for p in blip2 if p.name == base.rsplit("/", 1)[-1]]
    if not blip2 or (len(blip2) > 1 and not named):
        names = ", ".join(p.name for p in blip2) or "none"
        raise ExportError(
            f"foundation {folder}: needs a folder {base.rsplit('/', 1)[-1]}/ with a Hugging Face BLIP-2, found {names}; "
            "beside it text_branch/ and, for clouds, point_bert/"
        )
    points = folder / POINT_FOLDER
    return FoundationConfig(
        str((named or blip2)[0]), str(folder / "text_branch"), str(points) if points.is_dir() else ""
    )


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """``ExportError`` for a field of ``modality.json`` that is missing or of another type; its sections are checked where they are read."""
    model = settings.get("model")
    wrong = [name for name in ("modality", "run", "base") if not isinstance(settings.get(name), str)]
    wrong += [
        name for name in ("model", "decode", "foundation", "parameters") if not isinstance(settings.get(name), dict)
    ]
    wrong += [name for name in ("seed", "step") if count(settings.get(name))]
    if not wrong and settings["modality"] not in MODALITIES:
        wrong = ["modality"]
    if not wrong and texts(list(settings["parameters"].values())):
        wrong = ["parameters"]
    if not wrong and not (isinstance(model, dict) and isinstance(model.get("lora"), dict)):
        wrong = ["model.lora"]
    if wrong:
        raise ExportError(
            f"{path}: field {wrong[0]!r} is missing or of another type than `rb export` writes; export again"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(tree, Mapping) or tree.get("format") != FORMAT:
        raise ExportError(f"{path}: not written by rb export in format {FORMAT}; export again with this version")
    return dict(tree)
