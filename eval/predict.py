"""``python -m eval.predict``: captions of a manifest to a predictions file; one process, or sharded under the deepspeed launcher."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rb.checkpoints.checkpoint import check_names, copy_parameters, load_parameters, require
from rb.core import dist
from rb.core.config import RunConfig, ValidationConfig
from rb.core.exit_codes import leave
from rb.core.modality import MODALITIES
from rb.core.run_file import load_run
from rb.core.run_layout import RUN_CONFIG
from rb.core.run_paths import open_foundation
from rb.inference.predicting import RELEASED_DECODING, Job, predict
from rb.model.region_blip import RegionBLIP


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.predict", description=__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", type=Path, help="run folder (its newest), or in it checkpoints/best or checkpoints/step_*"
    )
    model.add_argument("--run", type=Path, help="run file: its foundation without training (the base model)")
    parser.add_argument("--data", type=Path, required=True, help="manifest.json or its folder")
    parser.add_argument("--modality", required=True, choices=list(MODALITIES))
    parser.add_argument("--out", type=Path, required=True, help="predictions.jsonl to write")
    parser.add_argument(
        "--crop-boxes", action="store_true", help="caption the inside of each box (the paper's BLIP-2 baseline)"
    )
    parser.add_argument(
        "--crop-context", type=float, default=0.0, help="widen crops by this share of the box on every side"
    )
    parser.add_argument(
        "--shuffle-boxes", action="store_true", help="control: each region gets another box of its source"
    )
    parser.add_argument("--blind", action="store_true", help="control: the model gets a grey image or an empty cloud")
    parser.add_argument(
        "--decode", choices=["run", "released"], default="run", help="decoding of the run, or the released code's"
    )
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="loader processes per rank")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="section.key=value, e.g. decode.num_beams=1")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """One prediction job."""
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    dist.init()
    checkpoint = None
    if args.checkpoint is not None:
        found = require(args.checkpoint)
        folder, run_dir = found.path, found.path.parents[1].resolve()
        config = load_run(run_dir / RUN_CONFIG, args.overrides)
        checkpoint = {"run": str(run_dir), "name": folder.name, "step": found.step}
    else:
        folder, config = None, open_foundation(args.run, args.overrides)
    job = Job(
        config=_without_data(config),
        data=args.data,
        modality=args.modality,
        decode=RELEASED_DECODING if args.decode == "released" else config.decode,
        batch_size=args.batch_size,
        num_workers=args.workers,
        crop_boxes=args.crop_boxes,
        crop_context=args.crop_context,
        limit=args.limit,
        shuffle_boxes=args.shuffle_boxes,
        blind=args.blind,
        checkpoint=checkpoint,
    )

    def load(model: RegionBLIP) -> None:
        if folder is not None:
            values, parameters = load_parameters(folder), model.trainable_parameters()
            check_names(str(folder), values, parameters)
            copy_parameters(str(folder), parameters, values)

    count = predict(job, load, args.out)
    if dist.is_main():
        print(f"{count} captions in {args.out}")
    dist.shutdown()
    return 0


def _without_data(config: RunConfig) -> RunConfig:
    """Prediction does not need the training data, which may be elsewhere by now."""
    data = dataclasses.replace(config.data, train={}, val={})
    return dataclasses.replace(config, data=data, validation=ValidationConfig())


def main(argv: Sequence[str] | None = None) -> int:
    """What a user can cause ends in one line and exit code 2."""
    try:
        return run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"eval.predict: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    leave(main())
