"""The whole chain on the toy world, as a user would type it: raw data, shards, training on 2 ranks, prediction, scores, table, report.

``make demo`` runs this. Every step is a command of the project that is printed before it runs, so the demo is also the tutorial. The commands run
in this process, one after the other, so that torch and transformers are imported once; only training starts processes, its ranks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rb.core.run_layout import RUN_PREDICTIONS, RUN_REPORT
from rb.evaluation.doctor import missing

# Data set, and the splits that Table 1 needs of it.
DATA_SETS = (
    ("coco", ("test",)),
    ("refcoco", ("train", "test")),
    ("objaverse", ("train", "test")),
    ("scanrefer", ("train", "test")),
)
# (file name, modality, shards, trained, options): what Table 1 needs, and shuffled boxes as a control. The base model is the foundation
# without any training.
PREDICTIONS: tuple[tuple[str, str, str, bool, tuple[str, ...]], ...] = (
    ("base_image", "image", "coco_test", False, ()),
    ("image", "image", "coco_test", True, ()),
    ("base_image_region", "image_region", "refcoco_test", False, ()),
    ("crops_image_region", "image_region", "refcoco_test", False, ("--crop-boxes",)),
    ("image_region", "image_region", "refcoco_test", True, ()),
    ("shuffled_image_region", "image_region", "refcoco_test", True, ("--shuffle-boxes",)),
    ("point_cloud", "point_cloud", "objaverse_test", True, ()),
    ("point_cloud_region", "point_cloud_region", "scanrefer_test", True, ()),
    ("shuffled_point_cloud_region", "point_cloud_region", "scanrefer_test", True, ("--shuffle-boxes",)),
)


@dataclass
class Demo:
    """One run of the chain in one folder.

    Attributes:
        folder: everything that it makes.
        llm: of the foundation, ``opt`` or ``t5``.
        steps: of the training; none for as many as the run file says.
        scale: of the world, a row of ``rb/toy/raw/data_sets.py``.
        rb: runs one command, the words after ``rb``; returns its exit code.
    """

    folder: Path
    llm: str
    steps: int | None
    scale: str
    rb: Callable[[Sequence[str]], int]
    started: float = field(default_factory=time.monotonic)

    @property
    def run_file(self) -> str:
        """The shipped run file of this LLM."""
        return f"toy_{self.llm}"

    @property
    def run_dir(self) -> Path:
        """The folder of the training run."""
        return self.folder / "runs" / f"toy_{self.llm}"

    def run(self, title: str, *command: str) -> None:
        """Announce and run one command; a failure ends the demo with that command's exit code."""
        shown = " ".join(shlex.quote(part) for part in command)
        print(f"\n== [{time.monotonic() - self.started:4.0f} s] {title}\n   $ {shown}", flush=True)
        try:
            code = self.rb(command[1:])
        except Exception:
            sys.stderr.write(f"demo stopped: '{shown}' failed\n")
            raise
        if code:
            sys.stderr.write(f"demo stopped: '{shown}' ended with exit code {code}\n")
            raise SystemExit(code)

    def prepare(self) -> None:
        """Raw files as the real data sets have them, then shards."""
        raw, shards = self.folder / "raw", self.folder / "shards"
        small = [] if self.scale == "demo" else ["--scale", self.scale]
        self.run(
            "a small world, written in the real data sets' raw formats", "rb", "toy", "raw", "--out", f"{raw}", *small
        )
        for name, splits in DATA_SETS:
            for split in splits:
                places = ("--raw", f"{raw}/{name}", "--out", f"{shards}/{name}_{split}", "--split", split)
                self.run(f"{name}, {split}, to shards", "rb", "prepare", name, *places)

    def train(self) -> None:
        """The real launcher, ZeRO-2, two ranks."""
        limit = [] if self.steps is None else [f"train.max_steps={self.steps}"]
        self.run("training: DeepSpeed ZeRO-2 on 2 ranks", "rb", "train", "--ranks", "2", "--run", self.run_file, *limit)

    def evaluate(self) -> None:
        """Predict to files, score the files, one table, one page."""
        run = self.run_dir
        for name, modality, data, trained, options in PREDICTIONS:
            model = ("--checkpoint", f"{run}") if trained else ("--run", self.run_file)
            out = f"{run / RUN_PREDICTIONS / name}.jsonl"
            places = ("--data", f"{self.folder}/shards/{data}", "--modality", modality, "--out", out)
            self.run(f"captions: {name}", "rb", "predict", *model, *options, *places)
        files = [f"{run / RUN_PREDICTIONS / name}.jsonl" for name, *_ in PREDICTIONS]
        truths = [f"--truth={self.folder}/raw/{name}/truth.json" for name, _ in DATA_SETS]
        self.run("scores, and what is true of the captions", "rb", "score", *files, *truths)
        self.run("the report", "rb", "report", f"{run}")
        self.run("the paper's Table 1, on the toy world", "rb", "table", f"{run}")

    def run_all(self) -> int:
        """The whole chain.

        Raises:
            ValueError: the folder holds something else than an earlier demo.
        """
        folder, marker = self.folder, self.folder / ".demo"
        if folder.exists() and any(folder.iterdir()) and not marker.is_file():
            raise ValueError(
                f"{folder} is not empty and no earlier demo; name another folder with --out (make demo DEMO=...)"
            )
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        marker.touch()
        # For the commands, their libraries and the ranks: where the run files find the data, and that it all runs on a CPU
        # (a small model: the demo is the same on every machine).
        os.environ |= {"RB_DEMO": str(folder), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        for line in missing():
            print(f"note: the scores will lack a metric, its cells show '-'. Missing is {line}", flush=True)
        self.prepare()
        self.train()
        self.evaluate()
        took, store = time.monotonic() - self.started, f"sqlite:///{folder.resolve()}/runs/mlflow.db"
        report = self.run_dir / RUN_REPORT
        print(f"\n== done in {took:.0f} s. Report: {report}  MLflow: mlflow ui --backend-store-uri {store}")
        return 0
