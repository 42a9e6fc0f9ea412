"""What benchmarks measure, each with the arguments of its command (`rb bench step`, `rb bench data` and so on)."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.config import ORDERS
from rb.core.device import add_device
from rb.core.output import add_json
from rb.core.urls import location_argument


def _add_model(parser: argparse.ArgumentParser, made_up: bool = False) -> None:
    """A model that makes captions, perhaps one that is made up, and where it runs."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="run folder, checkpoint or export")
    source.add_argument("--run", type=Path, dest="run_file", metavar="FILE", help="run file: its model before training")
    if made_up:
        source.add_argument("--size", metavar="NAME", help="a model with random weights, e.g. medium_opt")
    parser.add_argument("--foundation", type=Path, help="folder of the frozen weights, if --checkpoint is an export")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")


def add_captions(parser: argparse.ArgumentParser) -> None:
    """``rb bench captions``."""
    _add_model(parser)
    parser.add_argument("--images", type=int, default=20, help="number of images (20)")
    parser.add_argument("--boxes", type=int, default=200, help="number of boxes over all images (200)")
    parser.add_argument("--pictures", type=Path, help="folder of images; without it they are noise")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"), help="size of the noise images"
    )
    parser.add_argument("--batch-size", type=int, default=20, help="captions made at once (20)")
    parser.set_defaults(run=run_captions)


def run_captions(args: argparse.Namespace) -> int:
    """Measure and print; FAILED if the two ways give different captions."""
    from rb.bench.caption_speed import run

    return run(args)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """``rb bench generate``."""
    parser.description = "Captions by our beam search beside plain transformers': FLOPs, processor time, texts."
    _add_model(parser, made_up=True)
    parser.add_argument("--examples", type=int, default=300, help="number of captions (300)")
    parser.add_argument("--batch-size", type=int, default=20, help="captions made at once (20)")
    parser.add_argument("--new-tokens", type=int, default=10, metavar="N", help="with --size: of each caption (10)")
    add_json(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of a run or checkpoint, e.g. decode.max_new_tokens=10"
    )
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.generation import run

    return run(args)


def add_order(parser: argparse.ArgumentParser) -> None:
    """``rb bench order``."""
    parser.description = "Walk one epoch in the full order and in blocks, with and without groups: how well each shuffles, how many seeks it makes."
    parser.add_argument("manifests", type=Path, nargs="*", metavar="MANIFEST", help="sets; without one it is made up")
    parser.add_argument("--batch-size", type=int, default=128, help="samples of a step, or of a pool (128)")
    parser.add_argument("--group-by-source", type=int, default=4, help="size of the groups (4)")
    parser.add_argument("--block-records", type=int, default=256, help="records of a block (256)")
    parser.add_argument("--window-blocks", type=int, default=64, help="blocks of a window (64)")
    parser.add_argument("--samples", type=int, default=200_000, help="walk at most so many samples (200,000)")
    parser.add_argument("--records", type=int, default=19_000, help="of the made-up set (19,000)")
    parser.add_argument("--captions", type=int, default=6, help="of each record of the made-up set (6)")
    parser.add_argument("--record-bytes", type=int, default=100_000, help="of the made-up set (100,000)")
    add_json(parser)
    parser.set_defaults(run=run_order)


def run_order(args: argparse.Namespace) -> int:
    """Walk and print."""
    from rb.bench.order_quality import run

    return run(args)


def add_data(parser: argparse.ArgumentParser) -> None:
    """``rb bench data``."""
    parser.description = "Read sets with and without groups, and by webdataset: samples for each second of processor time, decoded and checked."
    parser.add_argument(
        "manifests",
        nargs="*",
        type=location_argument,
        metavar="MANIFEST",
        help="sets, on disk or at URLs; without one four are made",
    )
    parser.add_argument(
        "--group-by-source", type=int, nargs="+", default=(4, 8, 16), metavar="N", help="groups (4 8 16)"
    )
    parser.add_argument("--order", choices=ORDERS, default="full", help="data.order (full)")
    parser.add_argument("--batch-size", type=int, default=128, help="samples of a micro-batch (128)")
    parser.add_argument("--sources", type=int, default=100, help="that each reader reads in a round, about (100)")
    parser.add_argument("--rounds", type=int, default=7, help="that are counted (7), after one that is not")
    parser.add_argument("--augment", action="store_true", help="augment as data.augment does")
    parser.add_argument(
        "--needs",
        type=float,
        default=0,
        metavar="N",
        help="samples/s that a step eats: says how many cores read so many",
    )
    add_json(parser)
    parser.set_defaults(run=run_data)


def run_data(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.reading_speed import run

    return run(args)


def add_step(parser: argparse.ArgumentParser) -> None:
    """``rb bench step``."""
    parser.description = (
        "Make real steps of each modality with random inputs: FLOPs, launches, memory, processor time by part, MFU. With --counters count "
        "instead, without a GPU, data or weights, what a rank of 32 executes and receives at the run's full size."
    )
    parser.add_argument("--counters", action="store_true", help="count on the meta device; needs --run")
    add_speed(parser)
    add_json(parser)
    parser.add_argument("--batches", type=int, default=1, help="with --counters: micro-batches to take the mean of (1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --run: e.g. data.group_by_source=4")
    parser.set_defaults(run=run_step)


def add_speed(parser: argparse.ArgumentParser) -> None:
    """What a measurement of steps needs to know."""
    parser.add_argument("--run", dest="run_file", metavar="FILE", help="run file, or a project's run")
    parser.add_argument("--size", default="medium_opt", help="without --run: a model that is made up (medium_opt)")
    parser.add_argument("--baseline", action="store_true", help="beside a step as LAVIS and the released code make it")
    parser.add_argument(
        "--also",
        nargs="+",
        choices=("features", "no_itm", "compiled"),  # rb/bench/ways.py, which imports torch
        default=[],
        help="beside a step from stored features of the frozen encoder; beside one without ITM; beside one with train.compile",
    )
    parser.add_argument("--micro-batch", type=int, default=0, metavar="N", help="samples; 0: the run's, else 8")
    parser.add_argument("--group-by-source", type=int, default=0, metavar="N", help="0: the run's, else 1")
    parser.add_argument("--modality", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are counted (5), after one that is not")
    add_device(parser)


def run_step(args: argparse.Namespace) -> int:
    """Count or measure, and print."""
    if args.counters:
        if not args.run_file:
            raise ValueError("--counters: counts the model of a run; give --run FILE")
        from rb.bench.step_counters import run as count

        return count(args)
    from rb.bench.step_speed import run as measure

    return measure(args)


def add_watching(parser: argparse.ArgumentParser) -> None:
    """``rb bench watching``."""
    parser.description = "Train some steps in one process, and say how much of their processor time goes into beats, counters and journal."
    parser.add_argument("--run", type=Path, required=True, dest="run_file", metavar="FILE", help="run file")
    parser.add_argument("--steps", type=int, default=100, help="steps that are measured (100), after ten others")
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.log_every=1")
    parser.set_defaults(run=run_watching)


def run_watching(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.watching_cost import run

    return run(args)


def add_scaling(parser: argparse.ArgumentParser) -> None:
    """``rb bench scaling``."""
    parser.description = (
        "Train some steps on one rank, on the ranks of one node and on all nodes: samples/s of a rank, and its efficiency beside the smaller sizes. "
        "Without --hostfile or --slurm: on this host alone."
    )
    parser.add_argument("--run", type=Path, required=True, dest="run_file", metavar="FILE", help="run file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="lines `host slots=8`, as of rb launch")
    where.add_argument("--slurm", action="store_true", help="the nodes of the Slurm job that this command runs in")
    parser.add_argument("--launcher", choices=("pdsh", "ssh"), help="with --hostfile: as of rb launch")
    parser.add_argument("--ranks", type=int, help="of this host; default: one for each GPU, or one")
    parser.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="with --slurm: default one for each GPU, or one"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="of each training that are measured (50), after ten others"
    )
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.global_batch_size=64")
    parser.set_defaults(run=run_scaling, torchrun=False)


def run_scaling(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.scaling import run

    return run(args)


def add_saving(parser: argparse.ArgumentParser) -> None:
    """``rb bench saving``."""
    parser.description = "Train in one process and save checkpoints: how long a step waits for one, beside the copy and a synchronous save."
    parser.add_argument(
        "--run", type=Path, dest="run_file", metavar="FILE", help="run file; without it the model is made up"
    )
    parser.add_argument("--parameters", type=int, default=60_000_000, help="of the made-up model (60 million)")
    parser.add_argument("--saves", type=int, default=5, help="how often it saves each way (5)")
    parser.add_argument("--folder", type=Path, help="where the temporary run folder is made, to choose the disk")
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --run: e.g. train.micro_batch_size=4")
    parser.set_defaults(run=run_saving)


def run_saving(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.saving_cost import run

    return run(args)


def add_fps(parser: argparse.ArgumentParser) -> None:
    """``rb bench fps``."""
    parser.description = (
        "Sample random clouds by each way that this machine has: time, operations a pick, whether the picks are equal."
    )
    parser.add_argument("--clouds", type=int, default=4, help="clouds of a batch (4)")
    parser.add_argument("--points", type=int, default=8192, help="points of a cloud (8,192)")
    parser.add_argument("--picks", type=int, default=512, help="points that are picked (512)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each way is timed (5); the median counts")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run_fps)


def run_fps(args: argparse.Namespace) -> int:
    """Measure and print; FAILED if two ways pick other points."""
    from rb.bench.sampling_speed import run

    return run(args)


def add_score(parser: argparse.ArgumentParser) -> None:
    """``rb bench score``."""
    parser.description = "Score made-up captions, one metric after the other: processor time, Java's too."
    parser.add_argument("--captions", type=int, default=1000, help="number of captions (1,000)")
    parser.add_argument(
        "--texts", type=int, metavar="N", help="captions and references out of so many different texts (all at random)"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these, e.g. CIDEr")
    parser.add_argument("--no-java", action="store_true", help="without METEOR and SPICE")
    parser.add_argument(
        "--spice-cache", type=Path, metavar="DIR", help="where SPICE keeps parsed texts (nowhere: it parses all)"
    )
    add_json(parser)
    parser.set_defaults(run=run_score)


def run_score(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.bench.scoring_cost import run

    return run(args)


def add_all(parser: argparse.ArgumentParser) -> None:
    """``rb bench all``."""
    parser.description = (
        "Steps, counters, generation, data and scores one after the other within some minutes: one JSON document. On a GPU the check of kernels and "
        "engines and the paper's largest models with random weights come first."
    )
    parser.add_argument("--run", dest="run_file", metavar="FILE", help="run file whose foundation is here")
    parser.add_argument("--size", default="medium_opt", help="without --run: a model that is made up (medium_opt)")
    parser.add_argument("--baseline", action="store_true", help="steps beside those of LAVIS")
    parser.add_argument("--minutes", type=float, default=9, help="after which no part begins or goes on (9)")
    parser.add_argument("--rounds", type=int, default=3, help="of steps and readers (3)")
    parser.add_argument("--captions", type=int, default=1000, help="that are scored (1,000)")
    parser.add_argument("--examples", type=int, default=40, help="captions that are generated (40)")
    parser.add_argument("--sources", type=int, default=40, help="that each reader reads in a round (40)")
    parser.add_argument("--no-java", action="store_true", help="scores without METEOR and SPICE")
    parser.add_argument("--small", action="store_true", help="tiny models and batches: a test of this command")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here, instead of printing it")
    add_device(parser)
    parser.set_defaults(run=run_all)


def run_all(args: argparse.Namespace) -> int:
    """Run and print; FAILED where a part has no figures. ``args.rb`` is how a command of ours is started."""
    from rb.bench.everything import run

    return run(args)
