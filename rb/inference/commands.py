"""``rb predict``: captions, answers and what other tasks ask of a manifest to a predictions file, by one process or sharded over ranks. ``rb cache-features``, ``rb cache-groups``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.device import add_device
from rb.core.exit_codes import FINISHED
from rb.core.modality import MODALITIES
from rb.core.output import add_json, say, say_json
from rb.core.tasks import CAPTION, RETRIEVAL, TASKS, ZEROSHOT
from rb.core.threads import default_workers
from rb.core.urls import location_argument

if TYPE_CHECKING:
    from rb.data.formats import Manifest
    from rb.inference.cache_features import Caching
    from rb.inference.ranking import Ranking


def add_foundation(parser: argparse.ArgumentParser) -> None:
    """``--foundation`` and ``--allow``, for every command that loads a trained model."""
    parser.add_argument(
        "--foundation",
        type=Path,
        help="folder with blip2-*/, text_branch/ and, for clouds, point_bert/; an export needs it",
    )
    parser.add_argument(
        "--allow", action="append", default=[], choices=["foundation"], help="accept another foundation than trained on"
    )


def add_predict(parser: argparse.ArgumentParser) -> None:
    """``rb predict``."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", type=Path, help="run folder (its newest), or in it checkpoints/best or checkpoints/step_*"
    )
    model.add_argument(
        "--run", type=Path, dest="run_file", help="run file: its foundation without training (base model)"
    )
    parser.add_argument(
        "--data", type=location_argument, required=True, help="manifest.json or its folder; a path or a URL"
    )
    parser.add_argument("--modality", required=True, choices=list(MODALITIES))
    parser.add_argument("--task", choices=list(TASKS), default=CAPTION, help="what the model is asked for (caption)")
    parser.add_argument("--out", type=Path, required=True, help="predictions.jsonl to write")
    add_foundation(parser)
    view = parser.add_mutually_exclusive_group()
    view.add_argument(
        "--crop-boxes", action="store_true", help="caption the inside of each box (the paper's BLIP-2 baseline)"
    )
    view.add_argument(
        "--shuffle-boxes", action="store_true", help="control: each region gets another box of its source"
    )
    view.add_argument("--blind", action="store_true", help="control: the model gets a grey image or an empty cloud")
    parser.add_argument(
        "--crop-context", type=float, default=0.0, help="widen crops by this share of the box on every side"
    )
    parser.add_argument(
        "--decode",
        choices=["run", "released"],
        default="run",
        help="caption generation of the run, or the released code's",
    )
    parser.add_argument("--limit", type=int, help="caption only the first so many examples")
    parser.add_argument("--batch-size", type=int, default=16, help="examples of one forward pass (16)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per rank (0)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="zeroshot: names of all classes, one a line (the set's)"
    )
    parser.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="zeroshot: prompts of a class, one a line, {} its name (the run's)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="retrieval: candidates that ITM scores again (128); 0: by ITC alone"
    )
    parser.add_argument("--ranks", type=int, help="share the examples among so many processes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. decode.num_beams=1")
    parser.set_defaults(run=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """One prediction job; with ``--ranks`` the supervisor that starts its ranks (``share``, from above this room)."""
    if args.run_file is not None and (args.foundation is not None or args.allow):
        raise ValueError(
            "--foundation, --allow: go with --checkpoint; with --run give model.foundation.blip2=FOLDER and so on"
        )
    if args.ranks is not None:
        return _launch(args)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    from rb.core import dist
    from rb.core.files import check_writable
    from rb.data.index import ManifestReader
    from rb.inference.load import load_base, load_trained
    from rb.inference.predicting import BLIND, CROPS, RELEASED_DECODING, SHUFFLED, WHOLE, Job, decoding_of, predict

    check_writable(args.out)
    dist.init()
    if args.task != CAPTION and args.decode == "released":
        raise ValueError(f"--decode released: is of captions, not of --task {args.task}; leave it out")
    ranking = _ranking(args)
    view = CROPS if args.crop_boxes else SHUFFLED if args.shuffle_boxes else BLIND if args.blind else WHOLE
    job = Job(
        ManifestReader(args.data),
        args.modality,
        view,
        args.crop_context,
        args.limit,
        args.batch_size,
        args.workers,
        args.task,
        ranking,
    )
    if args.checkpoint is not None:
        loaded = load_trained(args.checkpoint, args.foundation, dist.device(), args.overrides, args.allow)
    else:
        loaded = load_base(args.run_file, dist.device(), args.overrides)
    if args.decode == "released":
        loaded = loaded.generating(RELEASED_DECODING[loaded.text.llm_kind])
    if job.asked.decoding:
        given = {word.partition("=")[0].removeprefix("decode.") for word in args.overrides}
        loaded = loaded.generating(decoding_of(job.asked, loaded, given))
    count = predict(job, loaded, args.out)
    if dist.is_main():
        say(f"{count} {job.asked.makes} in {args.out}")
    dist.shutdown()
    return FINISHED


def _ranking(args: argparse.Namespace) -> Ranking:
    """What a task that ranks is told; ``ValueError`` for options of another task."""
    from rb.inference.ranking import Ranking, read_classes, read_templates

    for name, task in (("classes", ZEROSHOT), ("templates", ZEROSHOT), ("top_k", RETRIEVAL)):
        if getattr(args, name) is not None and args.task != task:
            raise ValueError(f"--{name.replace('_', '-')}: goes with --task {task}, not with {args.task}; leave it out")
    told = Ranking(
        read_classes(args.classes) if args.classes else (), read_templates(args.templates) if args.templates else ()
    )
    if args.top_k is not None and args.top_k < 0:
        raise ValueError(f"--top-k {args.top_k}: must be at least 0")
    return told if args.top_k is None else dataclasses.replace(told, top_k=args.top_k)


def _launch(args: argparse.Namespace) -> int:
    """The same command as ``--ranks`` processes, each of which is ``python -m rb.inference``."""
    if args.ranks < 1:
        raise ValueError(f"--ranks {args.ranks}: must be at least 1")
    ranks = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ranks.add_argument("--ranks")
    return int(args.share("rb.inference", ranks.parse_known_args(args.argv)[1], args.ranks, "rb predict"))


def add_cache(parser: argparse.ArgumentParser) -> None:
    """``rb cache-features``."""
    parser.description = (
        "Write what the frozen encoder makes of every source of a set as a set of shards, which data.train lists in place of it. "
        "A process that was killed goes on where it was."
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the stored features (bfloat16)"
    )
    _add_caching(parser)
    parser.set_defaults(run=run_cache)


def add_cache_groups(parser: argparse.ArgumentParser) -> None:
    """``rb cache-groups``."""
    parser.description = (
        "Write a set of clouds again with the groups of points that the run's point encoder finds in them, which are then not searched for at "
        "every step. A process that was killed goes on where it was."
    )
    _add_caching(parser)
    parser.set_defaults(run=run_cache_groups)


def _add_caching(parser: argparse.ArgumentParser) -> None:
    """What the two commands that write a set from a set share."""
    parser.add_argument("manifest", type=location_argument, help="a manifest.json, or its folder; a path or a URL")
    parser.add_argument(
        "--run", type=Path, required=True, dest="run_file", metavar="FILE", help="run file: its foundation and settings"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--batch-size", type=int, default=16, help="sources that are read by the device at once (16)")
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads that read and decode")
    parser.add_argument("--shard-mb", type=int, default=500, help="largest size of a shard (500)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older set")
    add_device(parser)
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.augment=false")


def run_cache(args: argparse.Namespace) -> int:
    """Encode a set, once."""
    _check_caching(args)
    from rb.core.device import usable_device
    from rb.core.run_paths import open_foundation
    from rb.inference.cache_features import cache_features
    from rb.model.weights.build import build_model

    device = usable_device(args.device)
    config = open_foundation(args.run_file, args.overrides)
    job = dataclasses.replace(_caching(args), dtype=args.dtype)
    _say_made(args, "features", cache_features(job, config, build_model(config.model, config.seed, device), args.out))
    return FINISHED


def run_cache_groups(args: argparse.Namespace) -> int:
    """Find the groups of a set's clouds, once."""
    _check_caching(args)
    from rb.core.device import usable_device
    from rb.core.run_paths import open_foundation
    from rb.inference.cache_groups import cache_groups
    from rb.model.weights.build import build_model

    device = usable_device(args.device)
    config = open_foundation(args.run_file, args.overrides)
    job = _caching(args)
    _say_made(
        args, "groups", cache_groups(job, config, build_model(config.model, config.seed, "meta"), args.out, device)
    )
    return FINISHED


def _check_caching(args: argparse.Namespace) -> None:
    for name in ("batch_size", "workers", "shard_mb"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")


def _caching(args: argparse.Namespace) -> Caching:
    from rb.data.index import ManifestReader
    from rb.inference.cache_features import Caching

    return Caching(
        ManifestReader(args.manifest),
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        max_shard_bytes=args.shard_mb * 1_000_000,
    )


def _say_made(args: argparse.Namespace, what: str, made: Manifest) -> None:
    from rb.data.formats import MANIFEST_FILE

    file, num_bytes = args.out / MANIFEST_FILE, sum(entry.bytes for entry in made.shards)
    if args.json:
        say_json({"manifest": str(file), "bytes": num_bytes, "counts": made.counts})
    else:
        say(f"{what} of {made.counts['records']:,} sources, {num_bytes / 1e9:,.3f} GB -> {file}")
