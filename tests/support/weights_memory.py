"""Peak host memory of ranks that load one sharded fp32 checkpoint into bf16: a small one in ``make test``, one of 2 GB in ``make drill``."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration

from tests.support import tiny
from tests.support.processes import finish, start

WIDTH, LAYERS_PER_GB = 1024, 18  # 12.6 million numbers, 50 MB in fp32, a layer


def write_checkpoint(folder: Path, gigabytes: float, num_shards: int) -> tuple[int, int]:
    """A tiny foundation whose OPT has about ``gigabytes`` in fp32; returns (bytes of all, bytes of the largest shard)."""
    foundation = tiny.write_foundation(folder)
    blip2 = Path(foundation.blip2)
    tree = json.loads((blip2 / "config.json").read_text())
    sizes = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 4 * WIDTH, "num_attention_heads": 16}
    tree["text_config"] |= sizes | {"num_hidden_layers": max(1, round(gigabytes * LAYERS_PER_GB * 1.1))}
    (blip2 / "config.json").write_text(json.dumps(tree))
    (blip2 / "model.safetensors").unlink()
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config.from_dict(tree))
    shapes = {k: v.shape for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    shares: list[dict[str, torch.Size]] = [{}]
    total = sum(shape.numel() for shape in shapes.values())
    for name, shape in shapes.items():
        if sum(s.numel() for s in shares[-1].values()) >= total / num_shards:
            shares.append({})
        shares[-1][name] = shape
    weight_map = {}
    for i, share in enumerate(shares):
        file = f"model-{i + 1:05d}-of-{len(shares):05d}.safetensors"
        save_file({name: torch.full(shape, 0.5) for name, shape in share.items()}, blip2 / file, {"format": "pt"})
        weight_map |= dict.fromkeys(share, file)
    (blip2 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = [path.stat().st_size for path in blip2.glob("*.safetensors")]
    return sum(files), max(files)


def measure(folder: Path, world_size: int = 2) -> list[dict[str, int]]:
    """Load on all ranks at once; for each the bytes at the start and at the peak. In a process of its own, from which the ranks fork."""
    output = finish(start("tests.support.weights_memory", "--ranks-of", folder, "--ranks", world_size), timeout=900)
    found: list[dict[str, int]] = json.loads(output.strip().splitlines()[-1])
    return found


def _status(name: str) -> int:
    """A line of this process's memory account, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def all_ranks(folder: Path, world_size: int) -> list[dict[str, int]]:
    """Everything is imported and warmed up once, then the ranks part and load as training does."""
    from rb.core.config import FoundationConfig
    from rb.model.weights.build import build_model

    where = FoundationConfig(str(folder / "blip2-opt"), str(folder / "text_branch"), "")
    config = tiny.model_config(where, train_modalities=("image_region",), frozen_dtype="bfloat16")
    build_model(config, seed=0, device="meta")
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(world_size), context.Queue()

    def one_rank() -> None:
        torch.set_num_threads(1)
        together.wait()
        Path("/proc/self/clear_refs").write_text("5")  # peak := now
        before = _status("VmRSS")
        model = build_model(config, seed=0).model
        kept = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        results.put({"before": before, "peak": _status("VmHWM"), "after": _status("VmRSS"), "model": kept})

    ranks = [context.Process(target=one_rank) for _ in range(world_size)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=600) for _ in ranks]
    for rank in ranks:
        rank.join()
    return found


def main() -> int:
    """What ``measure`` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks-of", type=Path, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(all_ranks(args.ranks_of, args.ranks)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
