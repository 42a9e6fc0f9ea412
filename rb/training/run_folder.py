"""The run folder as training uses it: made or reopened, locked against a second training, its small files, its log.

Holds who may write where, and what a run must share with its checkpoint to go on; names of files are in `rb/core/run_layout.py`.
"""

from __future__ import annotations

import logging
import platform
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rb.core.config import RunConfig
from rb.core.files import left_overs, write_json, write_whole
from rb.core.fingerprints import PREFIX
from rb.core.install import git_commit, installed_versions
from rb.core.locks import FileLock
from rb.core.patient import PatientLogFile
from rb.core.run_file import load_run, to_tree, with_defaults, with_pool
from rb.core.run_layout import CHECKPOINTS, RUN_CONFIG, RUN_END, RUN_ENVIRONMENT, RUN_LOG, RUN_WEIGHTS, TRAINING_LOCK
from rb.core.run_paths import resolve_paths, run_places
from rb.core.verbosity import show_progress_lines
from rb.data.pipeline import TrainingData
from rb.inference.load import comparable
from rb.model.weights.build import Built
from rb.tracking.tracker import flatten
from rb.training.run_end import clear_end, write_end

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "webdataset", "mlflow", "safetensors", "numpy")
# What may differ between a run and its continuation: nothing of it changes what is computed. Folders may move, since contents are
# compared by digest.
FREE_KEYS = (
    "name",
    "output_dir",
    "init_from",  # read before the first step only
    "data.num_workers",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "train.activation_checkpointing",
    "train.ds_config",
    "train.timeout_s",
    "train.num_threads",
)
FREE_SECTIONS = ("tracking.", "limits.", "decode.", "model.foundation.", "validation.", "data.val")
# Length of a run -> how it is changed; rb/training/extending.py holds that it is as the last extension left it.
_LONGER = {
    "train.max_steps": "; a run is made longer by `rb extend RUN_DIR --steps {} --rate RATE`",
    "train.epochs": "; a run is made longer by `rb extend RUN_DIR --epochs {} --rate RATE`",
}
_EXTENSIONS = "optim.extensions"
STEP_LOG = "rb.training.steps"  # one line every few steps: to the file only, the progress bar shows them


class RunFolder:
    """A run folder. Every rank has the object; only rank 0 claims the folder and writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / TRAINING_LOCK)

    def claim(self, new: bool) -> None:
        """Lock the folder for this process, making it where it is missing, and open its log.

        Raises:
            ValueError: another training is in it, or it should be new and a run is already there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise ValueError(
                f"{self.path}: another training is in this run folder ({self._lock.owner()}); "
                "wait for it, stop it, or use another name (name=...)"
            )
        if new:
            check_new(self.path)
        clear_end(self.path)
        self._remove_left_overs()
        self._start_log()

    def check_there(self) -> None:
        """``ValueError`` if the claimed folder was removed, moved or made again: what is written to its path now is not this run's."""
        if not self._lock.in_place():
            raise ValueError(
                f"{self.path}: the run folder was removed, moved or replaced while the run wrote to it; the run ends here. "
                "Put it back and continue with --resume, or start the run again"
            )

    def end(self, code: int, step: int, total_steps: int) -> None:
        """Write how the run ended; the last thing that is written. ``ValueError`` if the folder is gone."""
        self.check_there()
        write_end(self.path, code, step, total_steps)

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write a small text or JSON file, whole or not at all."""
        if isinstance(content, str):
            write_whole(self.path / name, content)
        else:
            write_json(self.path / name, content)

    def _remove_left_overs(self) -> None:
        """What an earlier attempt was killed over, of the files that only the holder of the lock writes."""
        for name in (RUN_END, RUN_CONFIG, RUN_ENVIRONMENT, RUN_WEIGHTS):
            for left in left_overs(self.path / name):
                left.unlink(missing_ok=True)

    def _start_log(self) -> None:
        """From now on the project's log goes to `log.txt`, and all but the lines of single steps to the error stream too."""
        file = PatientLogFile(self.path / RUN_LOG)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("rb").addHandler(file)
        show_progress_lines(STEP_LOG)


def check_new(path: Path) -> None:
    """``ValueError`` if a folder holds a run already."""
    if (path / RUN_CONFIG).exists():
        saved = (path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir())
        bare = "" if saved else "; it has saved no checkpoint: remove the folder if you need nothing of it"
        raise ValueError(
            f"{path}: holds a run already; continue it with --resume {path}, "
            f"or start another one under a new name (name=...){bare}"
        )


def saved_run(path: Path, overrides: list[str]) -> RunConfig:
    """The configuration of the run in a folder, with overrides and paths found; ValueError if there is none, or a path is gone."""
    file = path / RUN_CONFIG
    if not file.is_file():
        raise ValueError(f"{path}: no run there ({file} is missing); start it with --run FILE")
    config = load_run(file, overrides)
    return resolve_paths(config, *run_places(path.resolve(), config), init_from=False)


def identities_of(built: Built, data: Mapping[str, TrainingData]) -> dict[str, Any]:
    """Digests of what a run computes with: its foundation, and for each modality its manifests."""
    digests = {modality: [reader.digest for reader in opened.readers] for modality, opened in data.items()}
    return {"foundation": built.foundation, "data": digests}


def check_continues(meta: Mapping[str, Any], config: RunConfig, built: Built, data: Mapping[str, TrainingData]) -> None:
    """``check_same_run`` for an opened run; a checkpoint of an older version has weaker fingerprints, which are compared as such."""
    foundation = comparable(meta["identities"]["foundation"], built)
    check_same_run(meta, to_tree(config), identities_of(built, data) | {"foundation": foundation})


def check_same_run(meta: Mapping[str, Any], config: Mapping[str, Any], identities: Mapping[str, Any]) -> None:
    """Whether a checkpoint's record fits what is about to continue it.

    Args:
        meta: of the checkpoint, with "config" (the configuration as a tree; a field that is newer than it means its default, or what
            ``with_pool`` says) and "identities".
        config: the configuration now.
        identities: digests of foundation and data now.

    Raises:
        ValueError: names every key that would change what is computed, and every digest that differs.
    """
    recorded = with_defaults(with_pool(meta["config"], meta.get("num_ranks")))
    before, now = (flatten(_with_its_pool(tree)) for tree in (recorded, config))
    # Losses depend on the micro-batch only where negatives are sought within it.
    free: tuple[str, ...] = (
        FREE_KEYS if now["model.itm_negatives"] == "local" else (*FREE_KEYS, "train.micro_batch_size")
    )
    if _was_extended(recorded, config):
        free += tuple(_LONGER)
        before, now = (
            {key: value for key, value in flat.items() if not key.startswith(_EXTENSIONS)} for flat in (before, now)
        )
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key not in free
        and not key.startswith(FREE_SECTIONS)
        and not key.endswith(".manifest")
    ]
    was, are = flatten(meta["identities"]), flatten(identities)
    changed += [
        f"contents of {key}: {_short(was.get(key))} -> {_short(are.get(key))}"
        for key in sorted(was.keys() | are.keys())
        if was.get(key) != are.get(key)
    ]
    if changed:
        longer = next(
            (how.format(now[key]) for key, how in _LONGER.items() if before.get(key) != now[key] != "None"), ""
        )
        raise ValueError(
            "--resume continues the same run, but this changed since its checkpoint: "
            + "; ".join(changed)
            + ". Undo the change, or start a new run with init_from"
            + longer
        )


def _was_extended(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the run was made longer since the checkpoint: its extensions are there, and more."""
    before, now = (list(tree["optim"]["extensions"]) for tree in (recorded, config))
    return len(now) > len(before) and now[: len(before)] == before


def _with_its_pool(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration in which the contrastive batch is a number, where it is the default too."""
    train = tree["train"]
    pool = train["contrastive_batch_size"] or train["global_batch_size"]
    return {**tree, "train": {**train, "contrastive_batch_size": pool}}


def _short(digest: object) -> str:
    return str(digest).removeprefix(PREFIX)[:12]


def package_versions() -> dict[str, str]:
    """Versions of the packages that results may depend on."""
    return installed_versions(PACKAGES)


def environment(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What this process runs in: versions, commit, host; `extra` is added."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "git_commit": git_commit(),
        "command": sys.argv,
    } | dict(extra)
