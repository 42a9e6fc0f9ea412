"""Which kernels attention really uses in each part of the model, and whether other implementations give the same numbers.

Each part is run again on the inputs it had in a training step, forward and backward, under the profiler; the names of the operations show
flash, efficient and math apart, the names of the device's kernels are listed beside them.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import Blip2QFormerModel

from rb.core.batch import Batch
from rb.model.blip2_config import llm_config_of
from rb.model.packing import let_pack
from rb.model.qformer import share_keys
from rb.model.region_blip import RegionBLIP

# Operations of PyTorch's scaled dot product attention -> what we call them.
OPERATIONS = {
    "flash": re.compile(r"aten::_(scaled_dot_product_)?flash_attention\w*"),
    "efficient": re.compile(r"aten::_scaled_dot_product_efficient_attention\w*"),
    "cudnn": re.compile(r"aten::_scaled_dot_product_cudnn_attention\w*"),
    "math": re.compile(r"aten::_scaled_dot_product_attention_math\w*"),
    "flash-attn": re.compile(r"flash_attn::\w+|FlashAttn\w+"),
}
KERNELS = re.compile(r"flash|fmha|cudnn.*(sdpa|attention)|attention", re.IGNORECASE)
# Relative difference of outputs (norm of the difference by the norm): bfloat16 keeps 8 bits, and some forty layers add up.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
PARTS = ("vision", "Q-Former", "LLM", "point encoder")


@dataclass
class PartReport:
    """What one part used: calls by kind of attention, and kernel names of the device by how often they ran."""

    part: str
    kinds: dict[str, int]
    kernels: dict[str, int]


@dataclass
class Equality:
    """One part by another implementation of attention against SDPA."""

    part: str
    implementation: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they agree; a difference that is not a number does not."""
        return self.difference <= self.tolerance


@dataclass
class _Call:
    module: Any  # a transformers model, or the point encoder
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def modules(model: RegionBLIP) -> dict[str, nn.Module]:
    """The parts that hold attention, by name."""
    assert model.point_encoder is not None
    found = (model.blip2.vision_model, model.blip2.qformer, model.blip2.language_model, model.point_encoder)
    return dict(zip(PARTS, found, strict=True))


def record_calls(model: RegionBLIP, batches: list[Batch]) -> dict[str, _Call]:
    """The first call of each part in the forward passes of ``batches``."""
    calls: dict[str, _Call] = {}

    def remember(part: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            detached = {name: _leaf(value) for name, value in kwargs.items()}
            calls.setdefault(part, _Call(module, tuple(_leaf(value) for value in args), detached))

        return hook

    hooks = [m.register_forward_pre_hook(remember(p), with_kwargs=True) for p, m in modules(model).items()]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _leaf(value: Any) -> Any:
    """Floating tensors as leaves that want a gradient, so that the backward kernels run too."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def kernels_used(model: RegionBLIP, batches: list[Batch]) -> list[PartReport]:
    """For each part the attention it used, by the profiler."""
    reports = []
    cuda = [ProfilerActivity.CUDA] if model.device.type == "cuda" else []
    for part, call in record_calls(model, batches).items():
        model.adapters.activate(batches[0].modality)
        _output(model, call).float().sum().backward()  # lazy set-up happens once
        with profile(activities=[ProfilerActivity.CPU, *cuda]) as profiled:
            _output(model, call).float().sum().backward()
            if cuda:
                torch.cuda.synchronize()
        kinds, kernels = Counter[str](), Counter[str]()
        for event in profiled.key_averages():
            for kind, pattern in OPERATIONS.items():
                # The math form nests in no other; backward operations are counted like forward ones.
                if pattern.fullmatch(event.key):
                    kinds[kind] += event.count
            if not event.key.startswith("aten::") and KERNELS.search(event.key) and event.self_device_time_total > 0:
                kernels[event.key[:100]] += event.count
        reports.append(PartReport(part, dict(kinds), dict(kernels)))
        model.zero_grad(set_to_none=True)
    return sorted(reports, key=lambda report: PARTS.index(report.part))


def implementations(model: RegionBLIP) -> list[tuple[str, str]]:
    """(part, implementation) of what can be compared with SDPA here.

    flash-attn serves the ViT and decoders; T5 and the Q-Former refuse it. The point encoder only knows SDPA.
    """
    found = [(part, "eager") for part in PARTS[:3]]
    if model.device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        decoder = not llm_config_of(model.blip2.config).is_encoder_decoder
        found += [(part, "flash_attention_2") for part in ("vision", *(["LLM"] if decoder else []))]
    return found


@torch.no_grad()
def equal_to_sdpa(model: RegionBLIP, batches: list[Batch]) -> list[Equality]:
    """Outputs of each part by other implementations of attention, against SDPA."""
    language, results = model.blip2.language_model, []
    switch(language, "sdpa")  # packed captions are read by no other implementation
    try:
        calls = record_calls(model, batches)
        dtype = language.get_input_embeddings().weight.dtype
        for part, implementation in implementations(model):
            call = calls[part]
            model.adapters.activate(batches[0].modality)
            expected = _output(model, call).float()
            # On the part itself: through BLIP-2's own config the switch does not reach T5's two stacks.
            switch(call.module, implementation)
            try:
                found = _output(model, call).float()
            finally:
                switch(call.module, "sdpa")
            difference = float((found - expected).norm() / expected.norm())
            results.append(Equality(part, implementation, difference, TOLERANCE[dtype]))
    finally:
        let_pack(language)
    return results


def switch(module: Any, implementation: str) -> None:
    """Another implementation of attention for a part."""
    if isinstance(module, Blip2QFormerModel):
        share_keys(module, implementation)
    else:
        module.set_attn_implementation(implementation)


def _output(model: RegionBLIP, call: _Call) -> Tensor:
    dtype = model.blip2.language_model.get_input_embeddings().weight.dtype
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = call.module(*call.args, **call.kwargs)
    if isinstance(output, Tensor):
        return output
    return output.logits if "logits" in output else output.last_hidden_state
