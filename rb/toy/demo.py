"""The whole chain on the toy world, as a user would type it: raw data, shards, training on 2 ranks, prediction, scores, table, report.

``make demo`` runs this. Every step is a command of the project that is printed before it runs, so the demo is also the tutorial.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rb.core.run_layout import RUN_PREDICTIONS, RUN_REPORT

LLMS = ("opt", "t5")
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
    """One run of the chain in one folder."""

    folder: Path
    llm: str
    steps: int | None
    started: float

    @property
    def run_file(self) -> str:
        """The run file of this LLM."""
        return f"launch/runs/toy_{self.llm}.yaml"

    @property
    def run_dir(self) -> Path:
        """The folder of the training run."""
        return self.folder / "runs" / f"toy_{self.llm}"

    def run(self, title: str, *command: str) -> None:
        """Announce and run one command; a failure ends the demo with that command's exit code."""
        shown = " ".join(shlex.quote(part) for part in command)
        print(f"\n== [{time.monotonic() - self.started:4.0f} s] {title}\n   $ {shown}", flush=True)
        actual = [sys.executable if part == "python" else part for part in command]
        if actual[0] == "rb":
            actual[:1] = [sys.executable, "-m", "rb.cli"]
        environment = {
            **os.environ,
            "RB_DEMO": str(self.folder),
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
        }
        code = subprocess.run(actual, env=environment, check=False).returncode
        if code:
            raise SystemExit(f"demo stopped: '{shown}' ended with exit code {code}")

    def prepare(self) -> None:
        """Raw files as the real data sets have them, then shards."""
        raw, shards = self.folder / "raw", self.folder / "shards"
        self.run("a small world, written in the real data sets' raw formats", "rb", "toy", "raw", "--out", f"{raw}")
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
            self.run(f"captions: {name}", "python", "-m", "eval.predict", *model, *options, *places)
        files = [f"{run / RUN_PREDICTIONS / name}.jsonl" for name, *_ in PREDICTIONS]
        truths = [f"--truth={self.folder}/raw/{name}/truth.json" for name, _ in DATA_SETS]
        self.run("scores, and what is true of the captions", "python", "-m", "eval.score", *files, *truths)
        self.run("the report", "python", "-m", "eval.report", f"{run}")
        self.run("the paper's Table 1, on the toy world", "python", "-m", "eval.table", f"{run}")


def run_demo(args: argparse.Namespace) -> int:
    """``rb toy demo``: everything into ``--out``, which must be new or an earlier demo."""
    folder = Path(args.out)
    marker = folder / ".demo"
    if folder.exists() and any(folder.iterdir()) and not marker.is_file():
        raise ValueError(
            f"{folder} is not empty and no earlier demo; name another folder with --out (make demo DEMO=...)"
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    marker.touch()
    demo = Demo(folder, args.llm, args.steps, time.monotonic())
    demo.prepare()
    demo.train()
    demo.evaluate()
    report = demo.run_dir / RUN_REPORT
    print(
        f"\n== done in {time.monotonic() - demo.started:.0f} s. Report: {report}  MLflow: mlflow ui --backend-store-uri sqlite:///{folder.resolve()}/runs/mlflow.db"
    )
    return 0


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb toy demo``."""
    parser = commands.add_parser("demo", help="the whole chain on the toy world, about 12 minutes on 2 cores")
    parser.add_argument("--llm", choices=LLMS, default="opt", help="LLM of the foundation (opt)")
    parser.add_argument("--out", default="demo", help="folder for everything it makes")
    parser.add_argument(
        "--steps", type=int, default=None, help="fewer training steps than the run file's, for a quick look"
    )
    parser.set_defaults(run=run_demo)
