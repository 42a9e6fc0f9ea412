"""The ``rb`` command. One table says which room holds which command; a room is imported when its command is asked for.

Parses, hands over, and catches what a user can cause; all logic lives in the rooms. A room's function in ``commands.py`` fills in its
command's parser and sets ``run``, which gets the parsed arguments and returns an exit code. Neither torch nor transformers is imported
before ``run``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import rb
from rb.core.exit_codes import guarded, leave
from rb.core.verbosity import add_options, set_verbosity
from rb.data.prepare import DATASETS, add_prepare


def lazy(place: str) -> Callable[..., Any]:
    """The function ``module:name``, whose module is imported when the function is called."""
    module, name = place.split(":")

    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **options)

    return call


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is typed, ``score`` or ``data verify``.
        help: its line in ``rb --help``.
        fill: adds its arguments to a parser and sets ``run``.
        hands: what the command gets from above its room, by the name under which it finds it in its arguments.
    """

    name: str
    help: str
    fill: Callable[[argparse.ArgumentParser], None]
    hands: Mapping[str, Any] = field(default_factory=dict)

    def parser(self) -> argparse.ArgumentParser:
        """The command's own parser."""
        made = argparse.ArgumentParser(prog=f"rb {self.name}", description=f"{self.help[0].upper()}{self.help[1:]}.")
        self.fill_in(made)
        return made

    def fill_in(self, parser: argparse.ArgumentParser) -> None:
        """Arguments of the command, and those that every command has."""
        self.fill(parser)
        add_options(parser)
        parser.set_defaults(**self.hands)


# How a command runs other commands, handed down to those that do: as processes, or by a call in its own.
PROCESS = {"rb": (sys.executable, "-m", "rb.cli")}
CHECK = {"check_module": "rb.gpu_check"}  # the module behind launch/gpu_check.sh
CALL = {"rb": lambda words: main(words)}
GROUPS = {
    "bench": "measure speed",
    "config": "run files: show, compare, list the keys",
    "data": "shards: adopt, verify, count, compare, look at",
    "metrics": "check the caption metrics, fetch what SPICE needs",
    "mine": "regions and captions mined from images",
    "prepare": "raw data sets to shards",
    "runs": "the run files that come with the project",
    "toy": "the toy world: raw files in the real layouts, and the demo",
    "track": "journals and MLflow",
    "weights": "checkpoints: check, convert, assemble",
}
COMMANDS = (
    *(Command(f"prepare {name}", row.help, partial(add_prepare, name)) for name, row in DATASETS.items()),
    Command("data index", "write index and manifest for WebDataset tars", lazy("rb.data.commands:add_index")),
    Command("data verify", "compare every file of a set with its sha256", lazy("rb.data.commands:add_verify")),
    Command("data exclude", "a set without what other sets hold", lazy("rb.data.commands:add_exclude")),
    Command("data stats", "count what is in sets: Table 3's columns and more", lazy("rb.data.commands:add_stats")),
    Command("data diff", "which sources differ between two sets", lazy("rb.data.commands:add_diff")),
    Command("data show", "a page of examples with their boxes drawn", lazy("rb.pages.commands:add_show")),
    Command("weights check", "account for every weight of a run's model", lazy("rb.model.weights.commands:add_check")),
    Command("weights convert", "write a LAVIS set as a BLIP-2 folder", lazy("rb.model.weights.commands:add_convert")),
    Command("weights assemble", "put another LLM in OPT's place", lazy("rb.model.weights.commands:add_assemble")),
    Command("import-released", "a released checkpoint as a run folder", lazy("rb.training.commands:add_import")),
    Command("config show", "print a run's configuration, every key", lazy("rb.training.config_commands:add_show")),
    Command("config diff", "list the keys in which two runs differ", lazy("rb.training.config_commands:add_diff")),
    Command("config keys", "list every key, its default and meaning", lazy("rb.training.config_commands:add_keys")),
    Command("runs list", "list the shipped run files and ablation plans", lazy("rb.core.commands:add_runs_list")),
    Command("runs show", "print a shipped run file or plan", lazy("rb.core.commands:add_runs_show")),
    Command("runs copy", "copy a shipped run file or plan, to edit it", lazy("rb.core.commands:add_runs_copy")),
    Command("init", "write a run file for your own shards and foundation", lazy("rb.training.new_run:add_init")),
    Command("train", "start or continue a training run", lazy("rb.train:add_train")),
    Command("extend", "let a run go on for more epochs or steps", lazy("rb.training.commands:add_extend")),
    Command("checkpoints", "list and verify a run's checkpoints", lazy("rb.checkpoints.commands:add_checkpoints")),
    Command(
        "launch",
        "train over several nodes, watched",
        lazy("rb.launching.commands:add_launch"),
        {"rank_module": "rb.train"},
    ),
    Command("doctor", "check this host, and a run's files, before training", lazy("rb.launching.doctor:add_doctor")),
    Command("replay", "make one step again; name what is not finite", lazy("rb.training.replay_commands:add_replay")),
    Command("track sync", "copy to MLflow what it lacks; safe to repeat", lazy("rb.tracking.commands:add_sync")),
    Command("track best", "an experiment's checkpoints by a score", lazy("rb.tracking.commands:add_best")),
    Command("cache-features", "write frozen features of a set, to train on", lazy("rb.inference.commands:add_cache")),
    Command(
        "cache-groups", "write groups of points beside a set's clouds", lazy("rb.inference.commands:add_cache_groups")
    ),
    Command(
        "predict",
        "caption every example of a data set",
        lazy("rb.inference.commands:add_predict"),
        {"share": lazy("rb.launching.local:share_here")},
    ),
    Command(
        "score",
        "compute caption metrics of prediction files",
        lazy("rb.evaluation.commands:add_score"),
        {"judge_of": lazy("rb.toy.world.judge:toy_judge")},
    ),
    Command("judge", "ask a language model about captions (DLC-Bench)", lazy("rb.evaluation.judge_commands:add_judge")),
    Command(
        "export-predictions",
        "write predictions as others' tools read them",
        lazy("rb.evaluation.export_commands:add_export_predictions"),
    ),
    Command("table", "print the paper's Table 1 from a run's scores", lazy("rb.evaluation.commands:add_table")),
    Command("compare", "compare prediction files or run folders", lazy("rb.pages.commands:add_compare")),
    Command("report", "write a run's page: curves, scores, gallery", lazy("rb.pages.commands:add_report")),
    Command("metrics doctor", "run every metric once; say what is missing", lazy("rb.evaluation.commands:add_doctor")),
    Command("metrics install", "fetch the jars that SPICE needs", lazy("rb.evaluation.commands:add_install")),
    Command("ablate", "train and score variants of a run over seeds", lazy("rb.ablate.commands:add_ablate"), PROCESS),
    Command(
        "evaluate",
        "score the models of a plan: what is missing, one table",
        lazy("rb.jobs.commands:add_evaluate"),
        PROCESS,
    ),
    Command("reproduce", "are known scores, as the paper's, found again", lazy("rb.jobs.commands:add_reproduce")),
    Command("caption", "caption an image or boxes in it", lazy("rb.api.commands:add_caption")),
    Command("serve", "answer requests for captions over HTTP", lazy("rb.serving.commands:add_serve")),
    Command("demo", "a page to draw boxes on and read captions", lazy("rb.serving.commands:add_demo")),
    Command("export", "write a run's adapters for transformers and peft", lazy("rb.exporting.commands:add_export")),
    Command("push", "upload an export to the hub", lazy("rb.exporting.commands:add_push")),
    Command("mine run", "regions and captions mined from images", lazy("rb.mining.commands:add_run")),
    Command("mine stats", "count what a mining job made, kept and cost", lazy("rb.mining.commands:add_stats")),
    Command("mine show", "a page of mined regions, kept and dropped", lazy("rb.mining.commands:add_show")),
    Command("mine calibrate", "the filter's threshold for an encoder", lazy("rb.mining.commands:add_calibrate")),
    Command("plan", "what a run takes on GPUs of a kind: hours, memory, bytes", lazy("rb.plan.commands:add_plan")),
    Command("bench step", "real training steps, and what a step needs", lazy("rb.bench.commands:add_step")),
    Command("bench scaling", "ranks and nodes beside one of them", lazy("rb.bench.commands:add_scaling"), PROCESS),
    Command("bench plan", "the plan of a micro-batch beside a real one", lazy("rb.plan.commands:add_bench_plan")),
    Command("bench watching", "what watching a run costs of its steps", lazy("rb.bench.commands:add_watching")),
    Command("bench order", "how blocks shuffle and read beside the full order", lazy("rb.bench.commands:add_order")),
    Command("bench data", "how fast sets are read, beside webdataset", lazy("rb.bench.commands:add_data")),
    Command("bench score", "what caption metrics cost", lazy("rb.bench.commands:add_score")),
    Command(
        "bench all", "all that fits into some minutes, as JSON", lazy("rb.bench.commands:add_all"), PROCESS | CHECK
    ),
    Command("bench saving", "how long a step waits for a save", lazy("rb.bench.commands:add_saving")),
    Command("bench generate", "our beam search beside plain transformers'", lazy("rb.bench.commands:add_generate")),
    Command("bench fps", "farthest point sampling, each way beside the other", lazy("rb.bench.commands:add_fps")),
    Command("bench captions", "many boxes in one call against one by one", lazy("rb.bench.commands:add_captions")),
    Command("toy raw", "write the toy world as raw data sets", lazy("rb.toy.commands:add_raw")),
    Command("toy foundation", "copy the toy foundation, to try commands with", lazy("rb.toy.commands:add_foundation")),
    Command("toy demo", "the whole chain on the toy world", lazy("rb.toy.commands:add_demo"), CALL),
    Command("toy tasks", "other tasks than captions, asked of a toy model", lazy("rb.toy.commands:add_tasks")),
    Command("completion", "print a completion script for a shell", lazy("rb.cli:add_completion")),
)


def overview(filled: bool = False) -> argparse.ArgumentParser:
    """All commands as one parser: for ``rb --help`` with their names only, for completion filled in."""
    parser = argparse.ArgumentParser(prog="rb", description="RegionBLIP: prepare data, train, evaluate.")
    parser.add_argument("--version", action="version", version=f"rb {rb.__version__}")
    add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        *group, name = command.name.split()
        for part in group:
            if part not in groups:
                made = commands.add_parser(part, help=GROUPS[part], description=GROUPS[part])
                groups[part] = made.add_subparsers(dest="action", required=True, metavar="ACTION")
        made = (groups[group[0]] if group else commands).add_parser(name, help=command.help)
        if filled:
            command.fill_in(made)
    return parser


def add_completion(parser: argparse.ArgumentParser) -> None:
    """``rb completion``."""
    parser.description = 'Print a completion script. For bash: eval "$(rb completion bash)" in ~/.bashrc.'
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(run=_complete)


def _complete(args: argparse.Namespace) -> int:
    import shtab

    sys.stdout.write(shtab.complete(overview(filled=True), args.shell) + "\n")
    return 0


def _find(words: Sequence[str]) -> Command | None:
    return next((c for c in COMMANDS if c.name.split() == list(words[: len(c.name.split())])), None)


def _check_known(words: Sequence[str]) -> None:
    """``ValueError`` with the nearest name where ``words`` begin with no command and no group."""
    rows = [command.name.split() for command in COMMANDS]
    for depth, word in enumerate(words[:2]):
        if word.startswith("-"):
            return
        known = list(dict.fromkeys(row[depth] for row in rows if row[:depth] == list(words[:depth]) and row[depth:]))
        if known and word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            group = " ".join(["rb", *words[:depth]])
            raise ValueError(f"unknown command {word!r}; {hint}`{group} --help` lists them")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what a user can cause ends in one line on stderr and exit code 2.

    Options and ``key=value`` settings may stand in any order, ``-q`` and ``-v`` before the command too.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    before, words = argv[:first], argv[first:]
    command = _find(words)
    if command is None:
        return guarded("rb", partial(_explain, argv, words))
    return guarded(f"rb {command.name}", partial(_run, command, [*before, *words[len(command.name.split()) :]]))


def _run(command: Command, arguments: list[str]) -> int:
    args = command.parser().parse_intermixed_args(arguments)
    args.argv = arguments  # for a command that starts itself again, as ranks
    set_verbosity(args.verbosity)
    return int(args.run(args))


def _explain(argv: Sequence[str], words: Sequence[str]) -> int:
    """Help, version, or what is wrong with the command's name."""
    _check_known(words)
    overview().parse_args(argv)
    raise AssertionError(f"{argv} names no command, yet it was parsed")


def main_of(command: str, argv: Sequence[str] | None = None) -> int:
    """``main`` of one command, which is not in ``argv``."""
    return main([command, *(sys.argv[1:] if argv is None else argv)])


def entry(*command: str) -> NoReturn:
    """The process ``rb [command] ARGUMENTS``: runs it and ends with its exit code; also as one rank under a launcher."""
    # By default SIGTERM would leave child processes running (Java); as an exit it unwinds and takes them along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = main([*command, *sys.argv[1:]])
    if "RANK" in os.environ:
        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
