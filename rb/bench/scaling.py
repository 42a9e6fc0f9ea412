"""``rb bench scaling``: samples a second of a rank where a run trains on one rank, on all ranks of one node and on all nodes, and the efficiency beside the smaller ones.

Each size is a real training of some steps: by `rb train` on this host, by `rb launch` over several. Its run folder is removed afterwards. A rank has
the same share of the global batch at every size (weak scaling). So a rank computes the same, and only the machine and what ranks tell each other
differ. ITC and ITM contrast as many samples as the run's pool, or all of a smaller batch.

Measured by the clock, since waiting is what costs efficiency: the training's own ``train/samples_per_s``, without the first window of ``train.log_every``
steps. Ranks of one CPU share its cores and memory; only ranks with a GPU or a host each say how a cluster scales.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rb.core.child_commands import FailedError, Processes, StoppedError
from rb.core.config import RunConfig
from rb.core.exit_codes import FAILED, FINISHED, STOPPED
from rb.core.metric_names import SPEED, TRAIN, parse_name
from rb.core.model_config import at_least
from rb.core.output import aligned, figure, note, say, say_json
from rb.core.ranks_here import devices_of_ranks
from rb.core.run_layout import RUN_JOURNAL
from rb.core.run_paths import open_run
from rb.core.step_layout import allowed_layouts
from rb.launching.commands import places_of
from rb.launching.launchers import Place
from rb.tracking import metric_points

WINDOW = 10  # steps between two figures of a training
THIS_HOST = "this host"


@dataclass(frozen=True)
class Scaled:
    """What one size gave.

    Attributes:
        samples_per_s: of the whole job; a rank has the same share of it as every other.
        modalities: the same by modality. Work that a GPU does later than it was asked to can count for the next modality.
        of_one_rank, of_one_node: a rank's samples/s over that of a rank alone, and of a rank of one node alone.
    """

    ranks: int
    nodes: int
    global_batch_size: int
    samples_per_s: float
    samples_per_s_a_rank: float
    modalities: dict[str, float]
    of_one_rank: float
    of_one_node: float


def sizes_of(places: Sequence[Place]) -> list[tuple[Place, ...]]:
    """One rank, one node, all nodes; without those that are the same."""
    one_node = (places[0],)
    found = [(Place(places[0].host, 1),), one_node, tuple(places)]
    return [size for number, size in enumerate(found) if size not in found[:number]]


def batch_of(config: RunConfig, places: Sequence[Place], size: Sequence[Place]) -> tuple[int, int]:
    """Global batch and pool of a size, where a rank has the share that it has over all ``places``.

    Raises:
        ValueError: the run's global batch cannot be shared among all ranks.
    """
    whole, ranks = config.train.global_batch_size, sum(place.num_ranks for place in places)
    pool = config.train.contrastive_batch_size or whole
    allowed_layouts(whole, pool, ranks)
    batch = whole // ranks * sum(place.num_ranks for place in size)
    return batch, math.gcd(batch, pool)


def measure(
    args: argparse.Namespace, config: RunConfig, processes: Processes, places: Sequence[Place], folder: Path
) -> list[Scaled]:
    """Train at every size, the smallest first."""
    found: list[Scaled] = []
    for size in sizes_of(places):
        ranks = sum(place.num_ranks for place in size)
        name = f"{ranks}_ranks_on_{len(size)}"
        batch, pool = batch_of(config, places, size)
        steps = WINDOW + args.steps
        own = [f"output_dir={folder}", f"name={name}", "tracking.mlflow=false", "validation.every=0"]
        own += [f"train.max_steps={steps}", f"train.checkpoint_every={steps}", f"train.log_every={WINDOW}"]
        own += [f"train.global_batch_size={batch}", f"train.contrastive_batch_size={pool}"]
        words, variables = _command(args, size, folder, name)
        note(f"rb bench scaling: {steps} steps on {ranks} ranks of {len(size)} nodes")
        processes.run(name, [*processes.rb, *words, "--run", str(args.run_file), *args.overrides, *own], variables)
        found.append(_scaled(folder / name, size, batch, found))
    return found


def _command(
    args: argparse.Namespace, size: Sequence[Place], folder: Path, name: str
) -> tuple[list[str], dict[str, str]]:
    """The words of the command that trains on these nodes, and its variables."""
    if args.hostfile:
        hosts = folder / f"{name}.hosts"
        hosts.write_text("".join(f"{place.host} slots={place.num_ranks}\n" for place in size), encoding="utf-8")
        launcher = ["--launcher", args.launcher] if args.launcher else []
        return ["launch", "--hostfile", str(hosts), *launcher], {}
    if args.slurm:
        ranks = ["--ranks-per-node", str(size[0].num_ranks)]
        return ["launch", "--slurm", *ranks], {"SLURM_JOB_NODELIST": ",".join(place.host for place in size)}
    return ["train", "--ranks", str(size[0].num_ranks)], {}


def _scaled(run_dir: Path, size: Sequence[Place], batch: int, before: Sequence[Scaled]) -> Scaled:
    """The speeds of a finished run beside those of smaller ones."""
    speeds: dict[str, float] = {}
    for name, points in metric_points(run_dir / RUN_JOURNAL).items():
        metric, rates = parse_name(name), [point.value for point in points if point.step > WINDOW]
        if metric and (metric.stage, metric.value) == (TRAIN, SPEED) and rates:
            speeds[metric.place] = statistics.harmonic_mean(rates)  # of windows of equally many steps
    whole = speeds.pop("")
    ranks, nodes = sum(place.num_ranks for place in size), len(size)
    own = whole / ranks
    one_rank = before[0].samples_per_s_a_rank if before else own
    one_node = own if nodes == 1 else before[-1].samples_per_s_a_rank
    return Scaled(ranks, nodes, batch, whole, own, speeds, own / one_rank, own / one_node)


def lines_of(found: Sequence[Scaled]) -> list[str]:
    """The table for people."""
    head = ("ranks", "nodes", "batch", "samples/s", "a rank", "of one rank", "of one node")
    modalities = list(found[0].modalities)
    rows = [
        (
            *(f"{number:,}" for number in (one.ranks, one.nodes, one.global_batch_size)),
            figure(one.samples_per_s),
            figure(one.samples_per_s_a_rank),
            f"{one.of_one_rank:.3f}",
            f"{one.of_one_node:.3f}",
            *(figure(one.modalities[name] / one.ranks) if name in one.modalities else "-" for name in modalities),
        )
        for one in found
    ]
    return aligned([(*head, *(f"{name} a rank" for name in modalities)), *rows], 0)


def run(args: argparse.Namespace) -> int:
    """Measure and print; FAILED where a training fails, whose log stays, STOPPED where it was asked to end."""
    at_least("--steps", args.steps, WINDOW)
    over_hosts = args.hostfile or args.slurm
    if args.ranks is not None and over_hosts:
        raise ValueError(
            "--ranks: counts the ranks of this host; a hostfile says them by slots=N, Slurm by --ranks-per-node"
        )
    places = places_of(args) if over_hosts else (Place(THIS_HOST, len(devices_of_ranks(args.ranks))),)
    config = open_run(args.run_file, args.overrides)
    batch_of(config, places, places)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    # Beside the runs, since all nodes must see it.
    folder = Path(tempfile.mkdtemp(prefix=f"scaling_of_{config.name}_", dir=config.output_dir))
    processes = Processes(folder / "logs", args.rb)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: processes.stop())
    try:
        found = measure(args, config, processes, places, folder)
    except FailedError as error:
        note(f"rb bench scaling: error: {error}")
        return FAILED
    except StoppedError:
        shutil.rmtree(folder)
        return STOPPED
    shutil.rmtree(folder)
    if args.json:
        say_json({"run": config.name, "steps": args.steps, "sizes": [asdict(one) for one in found]})
    else:
        for line in lines_of(found):
            say(line)
    return FINISHED
