"""``rb mine run``: images to regions with captions. ``rb mine stats|show``: what a job made. ``rb mine calibrate``: the filter's threshold for another text encoder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, say, say_json

if TYPE_CHECKING:
    from rb.mining.config import MiningConfig
    from rb.mining.inputs import InputShard

CONFIG_FILE = "mining.yaml"


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the job, or a preset: paper, toy")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the file's: masks.min_side=24")


def add_run(parser: argparse.ArgumentParser) -> None:
    """``rb mine run``."""
    parser.description = (
        "Mine regions and captions from images. The output folder keeps a file of every stage and input shard; the same command goes on "
        "where an earlier one ended, and redoes only what a changed setting changes."
    )
    _add_config(parser)
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="PLACE",
        help="manifest, tar, folder of either, or pattern such as 'cc3m/*.tar'; may be repeated (default: input of the file)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the job")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="MANIFEST",
        help="leave out the images of this evaluation set, by id and by look; may be repeated (default: against of the file)",
    )
    parser.add_argument("--local", action="store_true", help="in this process, without Ray")
    parser.set_defaults(run=run_run)


def run_run(args: argparse.Namespace) -> int:
    """Run every stage over every shard, and write the set."""
    from rb.core.files import write_whole
    from rb.mining.config import dump_config, load_mining
    from rb.mining.finish import SHARDS_FOLDER, finish
    from rb.mining.inputs import find_inputs
    from rb.mining.local import run_local
    from rb.mining.on_ray import run_on_ray
    from rb.mining.stages import build_stages
    from rb.mining.work import alone_in, sweep

    config = load_mining(args.config, args.settings)
    # The folder remembers its inputs, wherever the next command is typed.
    places = tuple(str(Path(place).absolute()) for place in args.input or config.input)
    config = replace(config, input=places, against=tuple(args.against) or config.against)
    shards = find_inputs(config.input)
    stages = build_stages(config, args.out)
    with alone_in(args.out):
        sweep(args.out)
        write_whole(args.out / CONFIG_FILE, dump_config(config))
        if args.local:
            run_local(stages, shards, args.out, config.max_rejected)
        else:
            sizes = {stage.name: config.ray.size(stage.name) for stage in stages}
            run_on_ray(stages, shards, args.out, sizes, config.max_rejected, config.ray.address or None)
        done, _ = finish(args.out, shards, stages[-1].name, config.finish, config.dataset)
    say(
        f"{args.out / SHARDS_FOLDER}: {done.images:,} images, {done.regions:,} regions, "
        f"{done.words / done.regions:.2f} words a caption"
    )
    return FINISHED


def add_stats(parser: argparse.ArgumentParser) -> None:
    """``rb mine stats``."""
    parser.description = "Count what a job made, beside the paper's Table 3, and what each stage kept, dropped and cost; also while it runs."
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the job")
    add_json(parser)
    parser.set_defaults(run=run_stats)


def run_stats(args: argparse.Namespace) -> int:
    """Print the counts."""
    from rb.mining.stats import job_stats, stats_text

    config, names, shards = _job(args.out)
    found = job_stats(args.out, names, shards, {name: config.ray.size(name).gpus for name in names})
    if args.json:
        say_json(found.tree())
    else:
        say(stats_text(found))
    return FINISHED


def add_show(parser: argparse.ArgumentParser) -> None:
    """``rb mine show``."""
    parser.description = (
        "Write a page of random regions of a job, kept and dropped, by stage and reason; also while it runs."
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT", help="folder of the job")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--count", type=int, default=12, help="regions of each reason, at most (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (0)")
    parser.set_defaults(run=run_show)


def run_show(args: argparse.Namespace) -> int:
    """Write the page."""
    from rb.mining.show import show

    if args.count < 1:
        raise ValueError(f"--count {args.count}: must be at least 1")
    _, names, shards = _job(args.out_dir)
    shown = show(args.out_dir, args.out, names, shards, args.count, args.seed)
    say(f"{args.out}: {shown} regions")
    return FINISHED


def _job(out: Path) -> tuple[MiningConfig, list[str], list[InputShard]]:
    """Configuration, names of stages and inputs of the job in ``out``."""
    from rb.mining.config import load_mining
    from rb.mining.inputs import find_inputs
    from rb.mining.stages import stage_names

    if not (out / CONFIG_FILE).is_file():
        raise ValueError(f"{out}: no mining job there (no {CONFIG_FILE}); `rb mine run` makes one")
    config = load_mining(out / CONFIG_FILE)
    return config, stage_names(config), find_inputs(config.input)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """``rb mine calibrate``."""
    parser.description = (
        "Find the filter's threshold for the text encoder of a configuration: the smallest above which few pairs of captions of two objects of "
        "one image lie. Writes the configuration with it."
    )
    _add_config(parser)
    parser.add_argument(
        "--data", required=True, help="a set of image regions with several captions of an object (rb prepare refcoco)"
    )
    parser.add_argument(
        "--most-wrong",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of such pairs above the threshold (default: 0.1)",
    )
    parser.add_argument(
        "--pairs", type=int, default=2000, metavar="N", help="pairs of each kind to read (default: 2000)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the YAML file to write")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> int:
    """Find a threshold and write a configuration with it."""
    from rb.core.files import write_whole
    from rb.mining.calibrate import calibrate, pairs_of_set
    from rb.mining.chunks import Chunker
    from rb.mining.config import dump_config, load_mining
    from rb.mining.encoders import encoder_name, load_encoder

    if not 0 <= args.most_wrong < 1:
        raise ValueError(f"--most-wrong {args.most_wrong}: must be a share, 0 or more and below 1")
    if args.pairs < 1:
        raise ValueError(f"--pairs {args.pairs}: must be at least 1")
    config = load_mining(args.config, args.settings)
    pairs = pairs_of_set(args.data, args.pairs)
    encoder = load_encoder(config.filter.encoder, config.device)
    found = calibrate(pairs, Chunker(), encoder, config.filter, args.most_wrong)
    write_whole(args.out, dump_config(replace(config, filter=replace(config.filter, threshold=found.threshold))))
    say(
        f"{encoder_name(config.filter.encoder)!r}: threshold {found.threshold.value}, above which {found.same_kept:.1%} of {found.same} pairs of "
        f"captions of one object lie and {found.different_kept:.1%} of {found.different} of two\n{args.out} has it"
    )
    return FINISHED
