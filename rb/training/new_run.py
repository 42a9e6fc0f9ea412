"""``rb init``: a run file for one's own shards and foundation, with the reason beside each line. It trains as it is."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import say
from rb.core.urls import Location, location_argument

MOST_BATCH = 128  # 8 GPUs of 16, as the full-size run files
FEWEST_STEPS = 8  # of an epoch of the smallest modality, by which small data get small batches
WARMUP = 200  # the paper's, for runs that are long enough
VALIDATIONS = 5  # in a run
LOOKED_AT = 200  # clouds of a set, spread evenly, to know how many points they have


@dataclass(frozen=True)
class _Set:
    """One manifest."""

    path: Location
    modality: str
    split: str
    counts: dict[str, int]

    def line(self) -> str:
        """As an item of ``data``."""
        number = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if count)
        return f"{{manifest: {json.dumps(str(self.path), ensure_ascii=False)}}}  # {number}"


def run_file(name: str, data: Sequence[Location], foundation: Path, epochs: int, gpu: bool) -> str:
    """The text of a run file that trains on ``data``.

    Args:
        name: of the run.
        data: manifests or their folders; those of split ``val`` are for validation, those of ``test`` are left for ``rb predict``.
        foundation: folder with ``blip2-*/``, ``text_branch/`` and, for clouds, ``point_bert/``; or the ``blip2-*`` folder itself.
        gpu: whether it will train on GPUs.

    Raises:
        ValueError: no set to train on, or clouds without a point encoder.
    """
    from rb.checkpoints.export_folder import find_foundation
    from rb.core.modality import in_table_order
    from rb.data.formats import find_manifest, read_manifest, require_captions
    from rb.sources.table import source_of

    sets = []
    for path in data:
        file = find_manifest(path)
        about = read_manifest(file)
        require_captions(about, file)
        sets.append(_Set(file.resolve() if isinstance(file, Path) else file, about.modality, about.split, about.counts))
    train = [one for one in sets if one.split not in ("val", "test")]
    if not train:
        found = ", ".join(f"{one.path.parent} ({one.split})" for one in sets)
        raise ValueError(f"--data: no set to train on, only {found}; add one of split train")
    folder = foundation.parent if (foundation / "config.json").is_file() else foundation
    several = sorted(path.name for path in folder.glob("blip2-*") if (path / "config.json").is_file())
    if folder is foundation and len(several) > 1:
        raise ValueError(
            f"--foundation {folder}: holds {', '.join(several)}; name one of them, such as --foundation {folder / several[0]}"
        )
    parts = find_foundation(folder.resolve(), foundation.name)
    modalities = in_table_order({one.modality for one in train})
    clouds = [modality for modality in modalities if source_of(modality).point_encoder]
    if clouds and not parts.point_encoder:
        raise ValueError(
            f"{folder}: has no point_bert/, which {clouds[0]} needs; put the point encoder there, or leave out the clouds"
        )
    batch = _batch(min(sum(o.counts["samples"] for o in train if o.modality == modality) for modality in modalities))
    samples = sum(one.counts["samples"] for one in train)
    steps = max(1, epochs * samples // batch)
    lines = [
        f"# Purpose: {name}, written by rb init. Train it: rb train --run FILE [--ranks N]; look first: rb train --run FILE --dry-run.",
        f"# {samples:,} samples, {epochs} epochs of them are about {steps:,} steps. rb config keys explains every key and its default.",
        f"name: {json.dumps(name, ensure_ascii=False)}",
        "output_dir: runs  # the run's folder is made in it, where rb train is started",
        "model:",
        "  foundation:",
        f"    blip2: {json.dumps(parts.blip2, ensure_ascii=False)}",
        f"    text_branch: {json.dumps(parts.text_branch, ensure_ascii=False)}",
    ]
    if clouds:
        lines.append(f"    point_encoder: {json.dumps(parts.point_encoder, ensure_ascii=False)}")
    lines.append(f"  train_modalities: [{', '.join(modalities)}]")
    val = [one for one in sets if one.split == "val" and one.modality in modalities]
    if clouds:
        lines += _points([one for one in (*train, *val) if one.modality in clouds])
    lines.append("data:")
    for part, chosen in (("train", train), ("val", val)):
        lines += [f"  {part}:"] if chosen else []
        for modality in in_table_order({one.modality for one in chosen}):
            lines += [f"    {modality}:", *(f"      - {one.line()}" for one in chosen if one.modality == modality)]
    mirrored = ", ".join(f"{modality}: swap" for modality in modalities)
    lines.append(
        f"  # mirror: {{{mirrored}}}  # more from few samples: mirrored too, left and right exchanged in English captions where that is certain"
    )
    cores = len(os.sched_getaffinity(0))
    lines.append(
        f"  num_workers: {max(1, min(4, cores // 2))}  # processes that read, for each rank; this host has {cores} cores"
    )
    lines += [
        f"# afterwards: rb predict --checkpoint runs/{name} --data {one.path.parent} --modality {one.modality} --out FILE"
        for one in sets
        if one.split == "test"
    ]
    warmup = min(WARMUP, max(1, steps // 10))
    lines += [
        "optim:",
        "  lr: 1.0e-4  # the paper's; small runs often need more, such as 1.0e-3",
        f"  warmup_steps: {warmup}"
        + (
            "  # the paper's" if warmup == WARMUP else f"  # a tenth of the run; the paper's {WARMUP} are for long ones"
        ),
        "train:",
        f"  global_batch_size: {batch}  # of one step, over all ranks",
        "  micro_batch_size: auto  # of one pass on one rank: the largest part of its share that its memory holds",
        f"  epochs: {epochs}",
        f"  ds_config: ds_configs/{'zero2' if gpu else 'zero2_cpu'}.json",
    ]
    if val:
        every = max(1, steps // VALIDATIONS)
        lines += [
            "validation:",
            f"  every: {every}  # steps: losses on data.val, and captions with their scores; 0 is never",
        ]
    return "\n".join(lines) + "\n"


def _points(sets: Sequence[_Set]) -> list[str]:
    """The lines for the points that the model reads of a cloud, where the clouds have fewer than the default."""
    from rb.core.modality import modality_spec
    from rb.core.model_config import ModelConfig

    usual = ModelConfig.num_points
    fewest: dict[bool, int] = {}
    for one in sets:
        scenes = modality_spec(one.modality).regional
        fewest[scenes] = min(fewest.get(scenes, usual), _fewest_points(one.path))
    why = f"that the model reads of a cloud: all of the smallest one here; the default is {usual:,}"
    of_objects, of_scenes = fewest.get(False, fewest.get(True, usual)), fewest.get(True)
    lines = [f"  num_points: {of_objects}  # {why}"] if of_objects < usual else []
    if of_scenes is not None and of_scenes != of_objects:
        lines.append(f"  num_scene_points: {of_scenes}  # of scenes, the clouds with boxes")
    return lines


def _fewest_points(manifest: Location) -> int:
    from rb.data.index import ManifestReader
    from rb.sources.points import decode_points

    with closing(ManifestReader(manifest)) as reader:
        step = max(1, len(reader) // LOOKED_AT)
        found = (reader.sample(number).stored for number in range(0, len(reader), step))
        return min(len(decode_points(stored.media, stored.where)) for stored in found)


def _batch(samples: int) -> int:
    """The largest power of two that leaves the smallest modality some steps an epoch."""
    batch = MOST_BATCH
    while batch > 1 and batch * FEWEST_STEPS > samples:
        batch //= 2
    return max(batch, min(2, samples))  # one alone has nothing to be contrasted with


def add_init(parser: argparse.ArgumentParser) -> None:
    """``rb init``."""
    parser.description = (
        "Write a run file for your own shards (rb prepare) and foundation; it says why beside each line."
    )
    parser.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the file to write; its name is the run's")
    parser.add_argument(
        "--data",
        type=location_argument,
        nargs="+",
        required=True,
        metavar="DIR",
        help="sets of shards, folders or URLs: train, val, test",
    )
    parser.add_argument(
        "--foundation", type=Path, required=True, help="folder with blip2-*/, text_branch/ and, for clouds, point_bert/"
    )
    parser.add_argument(
        "--epochs", type=int, default=30, help="how often every sample is shown (30, the released code's)"
    )
    parser.set_defaults(run=run_init)


def run_init(args: argparse.Namespace) -> int:
    """Write the run file, after reading it as ``rb train`` will."""
    import torch

    from rb.core.files import write_whole
    from rb.core.run_paths import open_run

    if args.run_file.exists():
        raise ValueError(f"{args.run_file}: exists already; name another file, or remove it")
    if args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: must be at least 1")
    text = run_file(args.run_file.stem, args.data, args.foundation, args.epochs, torch.cuda.is_available())
    write_whole(args.run_file, text)
    try:
        open_run(args.run_file)
    except ValueError:
        args.run_file.unlink()
        raise
    say(f"{args.run_file}: look at it, then rb train --run {args.run_file}")
    return FINISHED
