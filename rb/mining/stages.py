"""From a configuration to the stages of a job, in order, each with what its bytes depend on: its settings and its model's digest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rb.core.files import sha256
from rb.core.run_file import to_tree
from rb.core.urls import location
from rb.mining.captioners import model_digest
from rb.mining.chunks import MODELS
from rb.mining.config import CaptionerConfig, MiningConfig, missing_package
from rb.mining.encoders import check_threshold, encoder_digest, encoder_name
from rb.mining.masks import MasksStage
from rb.mining.refine import REFINE, Refine
from rb.mining.screen import SCREEN, Screen
from rb.mining.stage import Stage
from rb.mining.texts import CaptionStage, DescribeStage, FilterStage, NameStage

_PATHS = ("model", "foundation")  # where weights lie; their digest counts


def stage_names(config: MiningConfig) -> list[str]:
    """The stages of a job in order."""
    texts = ["masks", "caption", "name", "filter", "describe"]
    return [*texts, REFINE, SCREEN] if config.refine else [*texts, SCREEN]


def build_stages(config: MiningConfig, out: Path) -> list[Stage]:
    """The stages of a job in order; no model is loaded yet.

    Args:
        out: folder of the job, where answers of a chat model are kept.

    Raises:
        ValueError: a model's folder that is not there, a package that is not installed, a threshold of another encoder.
    """
    _check_named(config)
    check_threshold(config.filter.encoder, config.filter.threshold)
    masks = _settings(config.masks) | {"cut_shards": config.cut_shards}
    if config.masks.segmenter == "felzenszwalb":
        masks["scikit_image"], masks_model = _version("scikit-image"), "none"
    else:
        masks_model = model_digest(Path(config.masks.model), "masks.model")
    writer, writes = captioner_digest(config.captioner), {"captioner": _settings(config.captioner)}
    filtering = _settings(config.filter)
    filtering["encoder"] = encoder_name(config.filter.encoder)
    filtering["spacy"] = [_version(name.replace("_", "-"), missing="") for name in MODELS]
    encoder = encoder_digest(config.filter.encoder)
    stages: list[Stage] = [
        MasksStage(masks, masks_model, config.masks, config.device, config.cut_shards),
        CaptionStage(_settings(config.caption) | writes, writer, config),
        NameStage(_settings(config.name) | writes, writer, config),
        FilterStage(filtering, encoder, config),
        DescribeStage(_settings(config.describe) | writes, writer, config),
    ]
    if config.refine is not None:
        stages.append(Refine(config.refine, out))
    return [*stages, Screen(config.screen, [location(place) for place in config.against])]


def _check_named(config: MiningConfig) -> None:
    """``ValueError``: a model that nobody named, as in the preset of the paper."""
    models = {"captioner.model": config.captioner.model, "filter.encoder.model": config.filter.encoder.model}
    if config.masks.segmenter != "felzenszwalb":
        models = {"masks.model": config.masks.model, **models}
    for field, folder in models.items():
        if not folder:
            raise ValueError(f"{field}: is empty; give the folder of the model's files")


def captioner_digest(config: CaptionerConfig) -> str:
    """Identity of a captioner: of BLIP-2's files; of a run's trained parameters and the record of its foundation."""
    if config.kind == "blip2":
        return model_digest(Path(config.model), "captioner.model")
    from rb.inference.load import read_trained

    trained = read_trained(Path(config.model), config.foundation)
    parts = [f"{name} {sha256(value.numpy().tobytes())}" for name, value in sorted(trained.values.items())]
    return sha256("\n".join([*parts, *(f"{part} {digest}" for part, digest in sorted(trained.recorded.items()))]))


def _settings(section: Any) -> dict[str, Any]:
    return {name: value for name, value in to_tree(section).items() if name not in _PATHS}


def _version(package: str, missing: str | None = None) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if missing is not None:
            return missing
        raise missing_package(package) from None
