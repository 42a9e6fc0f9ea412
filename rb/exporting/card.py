"""Model cards: what one modality was trained on, its scores with split, reference policy and decoding, the paper's numbers beside them.

Filled from the run folder alone; used by `writing.py`. A score is shown only where it belongs to the exported checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.metrics import CARD, shown_in
from rb.core.run_layout import RUN_METRICS
from rb.core.strict_json import read
from rb.evaluation.paper import printed, read_paper, table1_rows


def scores_of(run_dir: Path, modality: str, step: int) -> list[dict[str, Any]]:
    """The scores in ``RUN_DIR/metrics/`` of this modality at this step, as ``metrics.json`` has it; by data set and split."""
    found = []
    for path in sorted((run_dir / RUN_METRICS).glob("*.json")):
        result = read(path)
        if not isinstance(result, dict) or result.get("modality") != modality or result.get("variant") != "checkpoint":
            continue
        if (result.get("checkpoint") or {}).get("step") == step:
            found.append(result)
    return sorted(found, key=lambda r: (str(r["dataset"]), str(r["split"])))


def modality_card(settings: Mapping[str, Any], meta: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    """The README of one modality's folder.

    Args:
        settings: what ``modality.json`` holds.
        meta: the checkpoint's record (``config``, ``identities``, ``versions``).
        scores: of ``scores_of``.
    """
    modality, base = str(settings["modality"]), str(settings["base"])
    lines = [
        *_front_matter(base),
        f"# RegionBLIP adapter: {modality}",
        "",
        f"LoRA of the Q-Former and the LLM (`adapter_model.safetensors`, PEFT) and this modality's own parts (`parts.safetensors`) for "
        f"the frozen `{base}`. Method: RegionBLIP, [arXiv 2308.02299](https://arxiv.org/abs/2308.02299). {_numbers(settings)}",
        "",
        f"Made by run `{settings['run']}` at step {settings['step']}. How to use it with plain transformers and peft, without this "
        "project's code: `docs/use_adapters.md` in the repository that made it.",
        "",
        "## Trained on",
        "",
        *_data(modality, meta),
        "",
        "## Scores",
        "",
        *score_lines(scores),
        "",
        *_paper(modality),
        "",
        "## Foundation",
        "",
        *(f"- {part}: `{value}`" for part, value in settings["foundation"].items()),
        *(
            f"- **exported with another {part}** (accepted by `--allow foundation`): `{settings['exported_with'][part]}`"
            for part in settings.get("allowed", {}).get("foundation", [])
        ),
        f"- numerics: `{settings['model']['numerics']}`",
        *(f"- {package} {version}" for package, version in dict(meta.get("versions", {})).items()),
    ]
    return "\n".join(lines) + "\n"


def root_card(settings: Mapping[str, Any], modalities: Sequence[str], merged: bool) -> str:
    """The README of the whole export."""
    lines = [
        *_front_matter(str(settings["base"])),
        f"# RegionBLIP: run {settings['run']}, step {settings['step']}",
        "",
        f"Adapters of the frozen `{settings['base']}`, one folder for each modality; each is complete without the others and has a card:",
        "",
        *(f"- [{name}]({name}/README.md)" + (f", merged: `{name}/merged/`" if merged else "") for name in modalities),
        "",
        "`point_bert/`, where it is there, is the frozen point encoder under its original names; plain transformers has none.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(base: str) -> list[str]:
    hub = [f"base_model: {base}"] if "/" in base else []
    return [
        "---",
        "library_name: peft",
        *hub,
        "pipeline_tag: image-to-text",
        "tags: [regionblip, blip-2, lora]",
        "---",
        "",
    ]


def _numbers(settings: Mapping[str, Any]) -> str:
    return f"{settings['num_parameters']:,} trained parameters; LoRA rank {settings['model']['lora']['r']}, alpha {settings['model']['lora']['alpha']:g}."


def _data(modality: str, meta: Mapping[str, Any]) -> list[str]:
    digests = meta["identities"]["data"].get(modality, [])
    sources = meta["config"]["data"]["train"].get(modality, [])
    if not digests:
        return ["This run had no data of this modality: its parameters are at their start."]
    lines = ["| data | shown per epoch | sha256 of the manifest |", "|---|---|---|"]
    for source, digest in zip(sources, digests, strict=True):
        path = Path(source["manifest"])
        name = path.parent.name if path.name == "manifest.json" else path.name  # the folder; not where it was on a disk
        lines.append(f"| {name} | {source['repeat']} | `{digest}` |")
    train = meta["config"]["train"]
    return [*lines, "", f"{train['global_batch_size']} samples a step, schedule `{train['schedule']}`."]


def score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table of ``scores_of``: a row for each data set and metric."""
    if not scores:
        return ["Not scored: the run folder held no scores of this checkpoint when it was exported."]
    lines = [
        "All scores times 100.",
        "",
        "| data | split | examples | metric | score | references | tokeniser | decoding |",
        "|" + "---|" * 8,
    ]
    for result in scores:
        decoding = ", ".join(
            f"{key} {value}" for key, value in dict(result.get("decoding") or {}).items() if value not in (None, "")
        )
        for metric in shown_in(CARD):
            value = result["scores"].get(metric.name)
            if value is not None:
                lines.append(
                    f"| {result['dataset']} | {result['split']} | {result['num_examples']} | {metric.label} | {100 * value:.1f} | "
                    f"{result.get('reference_policy') or 'unknown'} | {result['tokeniser']} | {decoding or 'unknown'} |"
                )
    return lines


def _paper(modality: str) -> list[str]:
    paper, rows = read_paper(), table1_rows(modality)
    if not rows:
        return []
    lines = [
        f"The paper's own ({paper['source']}, Table 1; its data and full-size models; comparable only on the same set, references and decoding):",
        "",
        f"| row | data | metric | {' | '.join(paper['models'])} |",
        "|---|---|---|" + "---|" * len(paper["models"]),
    ]
    for row in rows:
        for metric, values in row["scores"].items():
            shown = " | ".join(printed(value) for value in values)
            lines.append(f"| {row['row']} | {row['dataset']} {row['split']} | {metric} | {shown} |")
    return lines
