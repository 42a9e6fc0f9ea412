"""The one door to a trained model: a run folder, a checkpoint in it, or an export, put into the frozen model that it was trained on.

Prediction, validation, the API, export and ``init_from`` come in through this file. It reads each file once, verifies it once, and
compares the foundation with the one that was recorded: another one is refused unless ``allow`` says "foundation".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rb.checkpoints.checkpoint import check_names, copy_parameters, parameters_of, require
from rb.checkpoints.export_folder import ExportError, find_foundation, is_export, read_export
from rb.core.config import DecodeConfig, FoundationConfig, ModelConfig
from rb.core.device import usable_device
from rb.core.fingerprints import is_weaker, weaker_fingerprint
from rb.core.run_file import load_run
from rb.core.run_layout import RUN_CONFIG, run_of_checkpoint, step_name
from rb.core.run_paths import find_path, open_foundation, resolve_foundation, run_places
from rb.core.text import TextProcessor
from rb.data.samples import SampleTransform
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import Built, build_model
from rb.sources.source import EncoderSettings
from rb.sources.table import SOURCES

FOUNDATION = "foundation"
ALLOWED = (FOUNDATION,)  # what ``allow`` may say

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What was trained, as it is stored; no model yet.

    Attributes:
        path: the checkpoint folder, or the export.
        name: of the run.
        run_dir: the run folder; none for an export.
        model: configuration, with the foundation to use.
        values: the trained parameters, by name, float32.
        recorded: identity of the foundation that it was trained on; parts that an export brings itself are left out.
        meta: of ``checkpoint.json``; empty for an export.
    """

    path: Path
    name: str
    step: int
    run_dir: Path | None
    model: ModelConfig
    generation: DecodeConfig
    seed: int
    values: dict[str, Tensor]
    recorded: dict[str, str]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A model ready to caption.

    Attributes:
        built: the model and what was read with it.
        transform: how stored examples become its inputs.
        generation: how captions are generated.
        trained: what was put into it; none for the base model.
        accepted: differences that ``allow`` accepted, e.g. {"foundation": ["blip2"]}; they go into what is written with this model.
    """

    built: Built
    transform: SampleTransform
    generation: DecodeConfig
    seed: int
    trained: Trained | None = None
    accepted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def model(self) -> RegionBLIP:
        """The model."""
        return self.built.model

    @property
    def text(self) -> TextProcessor:
        """Its tokenizers."""
        return self.built.text

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """The trained parameters' identity for a meta file; none for the base model."""
        if self.trained is None:
            return None
        run = self.trained.run_dir or self.trained.path
        return {"run": str(run.resolve()), "name": step_name(self.trained.step), "step": self.trained.step}

    def generating(self, generation: DecodeConfig) -> Loaded:
        """The same model with other settings of generation."""
        return replace(
            self, generation=generation, transform=example_transform(self.built, self.seed, generation.image_size)
        )


def load_trained(
    path: str | Path,
    foundation: str | Path | FoundationConfig | None = None,
    device: torch.device | str = "cpu",
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> Loaded:
    """A trained model. The device is checked before anything is read.

    Args:
        path: a run folder (its newest checkpoint), ``checkpoints/best`` or ``checkpoints/step_*`` in it, or an export.
        foundation: the frozen weights, a folder with ``blip2-*/``, ``text_branch/`` and, for clouds, ``point_bert/``, or their paths
            one by one. An export needs it; a run folder knows its own.
        device: as of ``rb.core.device.usable_device``.
        overrides: ``section.key=value`` of the run's configuration.
        allow: "foundation" accepts frozen weights other than those of the training.

    Raises:
        ValueError: no such device; nothing usable there; the parameters do not fit, or belong to another foundation.
    """
    device = usable_device(device)
    return build_trained(read_trained(path, foundation, overrides), device, allow)


def build_trained(
    trained: Trained, device: torch.device | str = "cpu", allow: Sequence[str] = (), held: Loaded | None = None
) -> Loaded:
    """The second half of ``load_trained``: the model of what was read.

    ``held`` is a model that is no longer needed: where only its trained parameters are others, they are replaced and nothing is built.
    """
    alike = held is not None and (held.built.config, held.seed) == (trained.model, trained.seed)
    built = held.built if held is not None and alike else build_model(trained.model, trained.seed, device)
    accepted = check_foundation(trained.path, trained.recorded, built, allow)
    parameters = built.model.trainable_parameters()
    check_names(str(trained.path), trained.values, parameters)
    copy_parameters(str(trained.path), parameters, trained.values)
    transform = example_transform(built, trained.seed, trained.generation.image_size)
    return Loaded(built, transform, trained.generation, trained.seed, trained, accepted)


def load_base(run_file: str | Path, device: torch.device | str = "cpu", overrides: Sequence[str] = ()) -> Loaded:
    """The base model of a run file: its foundation without training. The device is checked before anything is read."""
    device = usable_device(device)
    config = open_foundation(run_file, overrides)
    built = build_model(config.model, config.seed, device)
    transform = example_transform(built, config.seed, config.decode.image_size)
    return Loaded(built, transform, config.decode, config.seed)


def read_trained(
    path: str | Path, foundation: str | Path | FoundationConfig | None = None, overrides: Sequence[str] = ()
) -> Trained:
    """What was trained, without a model; arguments as of ``load_trained``."""
    path = Path(path)
    return _from_export(path, foundation) if is_export(path) else _from_run(path, foundation, overrides)


def _from_run(path: Path, foundation: str | Path | FoundationConfig | None, overrides: Sequence[str]) -> Trained:
    checkpoint = require(path)
    run_dir = run_of_checkpoint(checkpoint.path)
    run = load_run(run_dir / RUN_CONFIG, overrides)
    if foundation is None:
        found = resolve_foundation(run.model.foundation, *run_places(run_dir, run))
    else:
        found = _given(foundation, Path(run.model.foundation.blip2).name)
        head = run.model.foundation.text_head
        if head and not isinstance(foundation, FoundationConfig):  # no such folder has it: it belongs to the run
            found = replace(found, text_head=find_path("model.foundation.text_head", head, *run_places(run_dir, run)))
    return Trained(
        checkpoint.path,
        run.name,
        checkpoint.step,
        run_dir,
        replace(run.model, foundation=found),
        run.decode,
        run.seed,
        parameters_of(checkpoint),
        {part: str(value) for part, value in checkpoint.meta["identities"]["foundation"].items()},
        checkpoint.meta,
    )


def _from_export(path: Path, foundation: str | Path | FoundationConfig | None) -> Trained:
    export = read_export(path)
    if foundation is None:
        base = export.base.rsplit("/", 1)[-1]
        raise ExportError(
            f"{path}: an export holds no frozen weights; give --foundation (foundation= in Python), a folder with {base}/ and text_branch/"
        )
    found, recorded = _given(foundation, export.base), export.fingerprints
    if not found.point_encoder and export.point_encoder is not None:
        # The export's own file: the same weights under other names, so its fingerprint is another.
        found = replace(found, point_encoder=str(export.point_encoder))
        recorded = {part: value for part, value in recorded.items() if part != "point_encoder"}
    return Trained(
        path,
        export.run,
        export.step,
        None,
        replace(export.model, foundation=found),
        export.decode,
        export.seed,
        export.tensors,
        recorded,
    )


def _given(foundation: str | Path | FoundationConfig, base: str) -> FoundationConfig:
    return foundation if isinstance(foundation, FoundationConfig) else find_foundation(Path(foundation), base)


def comparable(recorded: Mapping[str, str], built: Built) -> dict[str, str]:
    """The identity of a model's foundation in the form of a record: where that has an older, weaker fingerprint, so has this."""
    now = dict(built.foundation)
    older = [part for part in built.files if is_weaker(recorded.get(part, built.foundation[part]))]
    for part in older:
        now[part] = weaker_fingerprint(built.files[part])
    if older:
        log.warning(
            "fingerprints of %s are of an older version and weaker: they cover size, first and last MiB of each file",
            ", ".join(older),
        )
    return now


def check_foundation(
    where: str | Path, recorded: Mapping[str, str], built: Built, allow: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Compare a model's frozen files with those recorded; the differences that were accepted.

    Raises:
        ValueError: they differ and ``allow`` does not say "foundation", or it says something unknown.
    """
    unknown = sorted(set(allow) - set(ALLOWED))
    if unknown:
        raise ValueError(f"--allow {unknown[0]}: not one of {', '.join(ALLOWED)}")
    now = comparable(recorded, built)
    other = [part for part in built.files if part in recorded and recorded[part] != now[part]]
    if not other:
        return {}
    if FOUNDATION not in allow:
        files = "; ".join(f"{part} ({built.files[part][0].parent})" for part in other)
        raise ValueError(
            f"{where}: was trained on another foundation: the contents of {files} are not the recorded ones, so captions may be "
            "wrong; name the right folder with --foundation, or accept this one with --allow foundation"
        )
    log.warning("%s: was trained on another foundation (%s); accepted by --allow foundation", where, ", ".join(other))
    return {FOUNDATION: other}


def example_transform(built: Built, seed: int, image_size: int | None = None) -> SampleTransform:
    """How stored rows become inputs of this model, not augmented; ``image_size`` if it is not the encoder's own."""
    points = built.model.point_encoder
    channels = points.config.in_channels if points is not None else 3
    grouping = points.config.grouping if points is not None else None
    settings = EncoderSettings(image_size or built.image_side, channels, grouping)
    of_source = {name: source.transform(built.config, settings) for name, source in SOURCES.items()}
    return SampleTransform(of_source, augment=False, seed=seed)
