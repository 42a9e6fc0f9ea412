"""``rb bench generate``: captions by our beam search beside plain transformers' on the same soft prompts, in turns in one process.

Soft prompts are random words' embeddings, so no data is needed and every caption is another one. *Plain* is ``language_model.generate`` with PEFT's
layers: a context is read once for every beam, and LoRA is multiplied at every word. Says FLOPs of one batch (``torch.utils.flop_counter``), processor time
(on a GPU the time of the kernels), the quotients, and how many texts differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rb.core.config import DecodeConfig
from rb.core.device import usable_device
from rb.core.exit_codes import FINISHED
from rb.core.model_config import at_least
from rb.core.output import say, say_json
from rb.core.run_paths import open_foundation
from rb.core.seeding import torch_generator
from rb.costs.random_models import SIZES, build_random
from rb.inference.load import load_trained
from rb.model.language import Generation, generate
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model


@dataclass(frozen=True)
class Figures:
    """What was measured. Seconds and GFLOP are of one batch, the median over batches."""

    modality: str
    examples: int
    batch_size: int
    num_beams: int
    max_new_tokens: int
    device: str
    dtype: str
    ours_seconds: float
    plain_seconds: float
    ours_gflop: float
    plain_gflop: float
    texts_that_differ: int


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    for name in ("examples", "batch_size", "new_tokens"):
        at_least(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = usable_device(args.device)
    if args.size is not None:
        found = measure(*made_up(args.size, device, args.new_tokens), args.examples, args.batch_size)
    else:
        if args.run_file is not None:
            config = open_foundation(args.run_file, args.overrides)
            built, decode = build_model(config.model, config.seed, device), config.decode
        else:
            loaded = load_trained(args.checkpoint, args.foundation, device, args.overrides)
            built, decode = loaded.built, loaded.generation
        how = Generation.of(built.text, next(iter(built.model.parts)), decode, built.model.device)
        found = measure(built.model, how, built.text.decode_llm, args.examples, args.batch_size)
    if args.json:
        say_json(asdict(found))
        return FINISHED
    say(
        f"{found.examples} captions of {found.modality}, batches of {found.batch_size}, {found.num_beams} beams, at most {found.max_new_tokens} words; "
        f"{found.device}, {found.dtype}, torch {torch.__version__}"
    )
    what = "ms of the GPU" if device.type == "cuda" else "ms of processor time"
    for name, ours, plain in (
        ("GFLOP", found.ours_gflop, found.plain_gflop),
        (what, 1e3 * found.ours_seconds, 1e3 * found.plain_seconds),
    ):
        say(f"{name} of a batch: ours {ours:,.2f}, plain transformers {plain:,.2f}: {plain / ours:.2f} times")
    say(f"texts that differ: {found.texts_that_differ}")
    return FINISHED


def made_up(
    name: str, device: torch.device, new_tokens: int
) -> tuple[RegionBLIP, Generation, Callable[[Tensor], list[str]]]:
    """A model with random weights and no tokenizer: captions of exactly so many tokens, compared as numbers."""
    if name not in SIZES:
        raise ValueError(f"--size {name}: must be one of {', '.join(SIZES)}")
    torch.manual_seed(0)
    model = build_random(SIZES[name], device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    config = model.blip2.language_model.config
    ends = (config.eos_token_id, config.pad_token_id)
    how = Generation(
        torch.full((1, 1), 2, device=device), DecodeConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens), *ends
    )
    return model, how, lambda ids: [str(row) for row in ids.tolist()]


def measure(
    model: RegionBLIP, how: Generation, read: Callable[[Tensor], list[str]], num_examples: int, batch_size: int
) -> Figures:
    """Both ways on the same prompts, in turns, after one batch of each that is not counted.

    Args:
        read: tokens [B, T] to the texts that are compared.
    """
    llm, decode, modality = model.blip2.language_model, how.decode, next(iter(model.parts))
    model.adapters.activate(modality)

    def our_way(prompt: Tensor) -> Tensor:
        with model.adapters.merged_in_llm(decode.merge_lora):
            return generate(llm, prompt, how)

    def plain_way(prompt: Tensor) -> Tensor:
        return generate(llm, prompt, how, reads_for_all_beams=False)

    ways = (our_way, plain_way)
    batches = [min(batch_size, num_examples - start) for start in range(0, num_examples, batch_size)]
    seconds: tuple[list[float], list[float]] = ([], [])
    differing, gflop = 0, [0.0, 0.0]
    with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=llm.dtype == torch.bfloat16):
        for index, way in enumerate(ways):
            with FlopCounterMode(display=False) as counter:
                way(random_prompts(model, batches[0], -1))
            gflop[index] = counter.get_total_flops() / 1e9
        for number, size in enumerate(batches):
            prompt = random_prompts(model, size, number)
            texts: list[list[str]] = [[], []]
            for index in (0, 1) if number % 2 else (1, 0):
                ids, took = timed(ways[index], prompt)
                texts[index] = read(ids.cpu())
                if size == batches[0]:
                    seconds[index].append(took)
            differing += sum(one != other for one, other in zip(*texts, strict=True))
    return Figures(
        modality,
        num_examples,
        batch_size,
        decode.num_beams,
        decode.max_new_tokens,
        str(model.device),
        str(llm.dtype).removeprefix("torch."),
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        gflop[0],
        gflop[1],
        differing,
    )


def random_prompts(model: RegionBLIP, size: int, number: int) -> Tensor:
    """Soft prompts [size, Q, L] of random words; the same for the same number."""
    words = model.blip2.language_model.get_input_embeddings().get_parameter("weight")
    shape = (size, model.blip2.config.num_query_tokens)
    drawn = torch.randint(len(words), shape, generator=torch_generator(0, "bench generate", number))
    return words[drawn.to(words.device)].detach()


def timed(way: Callable[[Tensor], Tensor], prompt: Tensor) -> tuple[Tensor, float]:
    """What a way makes of prompts, and the seconds that the processor or the GPU worked on it."""
    if prompt.device.type != "cuda":
        began = time.process_time()
        return way(prompt), time.process_time() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    ids = way(prompt)
    end.record()
    end.synchronize()
    return ids, start.elapsed_time(end) / 1e3
