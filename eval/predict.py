"""``python -m eval.predict``: captions of a manifest to a predictions file; one process, or sharded under the deepspeed launcher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rb.core import dist
from rb.core.exit_codes import leave
from rb.core.modality import MODALITIES
from rb.data.index import ManifestReader
from rb.inference.load import load_base, load_trained
from rb.inference.predicting import BLIND, CROPS, RELEASED_DECODING, SHUFFLED, WHOLE, Job, predict


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
        "--foundation", type=Path, help="folder with blip2-*/, text_branch/ and, for clouds, point_bert/"
    )
    parser.add_argument(
        "--allow", action="append", default=[], choices=["foundation"], help="accept another foundation than trained on"
    )
    view = parser.add_mutually_exclusive_group()
    view.add_argument(
        "--crop-boxes",
        action="store_const",
        dest="view",
        const=CROPS,
        default=WHOLE,
        help="caption the inside of each box (the paper's BLIP-2 baseline)",
    )
    view.add_argument(
        "--shuffle-boxes",
        action="store_const",
        dest="view",
        const=SHUFFLED,
        help="control: each region gets another box of its source",
    )
    view.add_argument(
        "--blind",
        action="store_const",
        dest="view",
        const=BLIND,
        help="control: the model gets a grey image or an empty cloud",
    )
    parser.add_argument(
        "--crop-context", type=float, default=0.0, help="widen crops by this share of the box on every side"
    )
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
    job = Job(
        ManifestReader(args.data),
        args.modality,
        args.view,
        args.crop_context,
        args.limit,
        args.batch_size,
        args.workers,
    )
    if args.checkpoint is not None:
        loaded = load_trained(args.checkpoint, args.foundation, dist.device(), args.overrides, args.allow)
    else:
        loaded = load_base(args.run, dist.device(), args.overrides)
    if args.decode == "released":
        loaded = loaded.generating(RELEASED_DECODING)
    count = predict(job, loaded, args.out)
    if dist.is_main():
        print(f"{count} captions in {args.out}")
    dist.shutdown()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """What a user can cause ends in one line and exit code 2."""
    try:
        return run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"eval.predict: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    leave(main())
