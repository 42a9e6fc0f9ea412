"""LoRA in few kernels: linear layers that read one input, and the active adapter's matrices, as one function of autograd.

Of a linear layer with weight W, bias b and PEFT's A [r, in] and B [out, r], y = x W' + b + s (x A') B'. PEFT computes this operator by operator: 18
launches a layer, forward and backward, beside those of the frozen product. Here the layers of an attention that read one input (query, key and
value; in a cross-attention key and value) are computed together: it is cast once, their A are stacked, and sums are made by the products
themselves (addmm). For query and value 9 kernels are LoRA's, forward x A' and a sum for each layer, backward two for each layer, and two for A and x.

PEFT's modules and parameters stay as they are. ``Together`` stands in the place of the layers' ``forward``, and hands back to it where
no adapter is active or one is merged. Shapes: N rows (all leading axes), k layers with LoRA, r rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

# Names of query, key and value in the attentions of LLMs and the Q-Former, and of attentions whose query reads something else than the others.
ROLES = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("query", "key", "value"))
_CROSS = re.compile("cross|EncDec|encoder_attn")

# A of all layers with LoRA that read one input [k r, in], and B of each [out, r], in the type of the products.
Matrices = tuple[Tensor, Sequence[Tensor]]


class _Projections(torch.autograd.Function):
    """x -> y of each layer, as the file says."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen: Sequence[tuple[Tensor, Tensor | None]],
        adapted: Sequence[int],
        scaling: float,
        down: Tensor,
        *ups: Tensor,
    ) -> tuple[Tensor, ...]:
        """Rows of x are [..., in].

        Args:
            frozen: weight [out, in] and bias of every layer.
            adapted: which of them have LoRA, in the order of ``ups``.
            down, ups: ``Matrices``, of the weights' type.
        """
        # Cast first: the cast of a part of a tensor leaves no gaps, so reshaping it makes no second copy.
        rows = x.to(down.dtype).reshape(-1, x.shape[-1])  # [N, in]
        hidden = rows @ down.T  # [N, k r]
        outputs = [rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T) for weight, bias in frozen]
        for layer, part, up in zip(adapted, hidden.chunk(len(ups), dim=1), ups, strict=True):
            torch.addmm(outputs[layer], part, up.T, alpha=scaling, out=outputs[layer])
        ctx.save_for_backward(rows, hidden, down, *ups)
        ctx.weights, ctx.adapted, ctx.scaling = [weight for weight, _ in frozen], adapted, scaling
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return tuple(output.view(*x.shape[:-1], output.shape[-1]) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Of x, A and every B; of what is frozen none."""
        rows, hidden, down, *ups = ctx.saved_tensors
        of_outputs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]  # [N, out]
        of_hidden = torch.empty_like(hidden)
        of_ups = [torch.empty_like(up) for up in ups]
        parts = zip(
            ctx.adapted, ups, of_ups, *(whole.chunk(len(ups), dim=1) for whole in (hidden, of_hidden)), strict=True
        )
        for layer, up, of_up, part, of_part in parts:
            # Not `out=`: torch's compiler refuses it of a part of a tensor.
            of_part.addmm_(of_outputs[layer], up, beta=0, alpha=ctx.scaling)
            of_up.addmm_(of_outputs[layer].T, part, beta=0, alpha=ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_outputs[0] @ ctx.weights[0]
            for gradient, weight in zip([*of_outputs[1:], of_hidden], [*ctx.weights[1:], down], strict=True):
                of_x.addmm_(gradient, weight)
            of_x = of_x.view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, None, of_hidden.T @ rows, *of_ups


class Together:
    """Linear layers that read one input: the first that is called computes all, the others hand out what waits for them.

    A layer that is called with another input than the layer before it, or twice, computes everything again. So layers that are wrongly put together
    take more time, but give the same numbers.

    Args:
        layers: frozen but for LoRA, which one of them has at least. Their ``forward`` is replaced.
        matrices: (this, name of an adapter, type) -> its matrices.
    """

    def __init__(self, layers: Sequence[nn.Module], matrices: Callable[[Together, str, torch.dtype], Matrices]) -> None:
        self._layers, self._matrices = list(layers), matrices
        self._adapted = [index for index, layer in enumerate(layers) if isinstance(layer, LoraLinear)]
        self._read: tuple[Tensor, str, bool] | None = None  # the input, the adapter, and whether gradients were wanted
        self._waiting: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index)

    @property
    def adapted(self) -> list[LoraLinear]:
        """The layers with LoRA."""
        return [self._layers[index] for index in self._adapted]  # type: ignore[misc]

    def _forward(self, index: int, x: Tensor, *args: Any, **named: Any) -> Tensor:
        name = None if args or named else self._adapter()
        if name is None:
            layer = self._layers[index]
            own: Tensor = type(layer).forward(layer, x, *args, **named)
            return own
        how = (name, torch.is_grad_enabled())
        if self._read is None or self._read[0] is not x or self._read[1:] != how or index not in self._waiting:
            self._read, self._waiting = (x, *how), dict(enumerate(self._compute(x, name)))
        output = self._waiting.pop(index)
        if not self._waiting:
            self._read = None
        return output

    def _compute(self, x: Tensor, name: str) -> tuple[Tensor, ...]:
        bases = [base_of(layer) for layer in self._layers]
        down, ups = self._matrices(self, name, bases[0].weight.dtype)
        frozen, scaling = [(base.weight, base.bias) for base in bases], self.adapted[0].scaling[name]
        outputs: tuple[Tensor, ...] = _Projections.apply(x, frozen, self._adapted, scaling, down, *ups)
        return outputs

    def _adapter(self) -> str | None:
        """The name of the adapter that is computed here; none where the layers go their own way.

        Predictions in float32 do, so that they are those of plain transformers and PEFT bit by bit.
        """
        layers, weights = self.adapted, [base_of(layer).weight for layer in self._layers]
        active = layers[0].active_adapters
        if not torch.is_grad_enabled() and weights[0].dtype == torch.float32:
            return None
        if len(active) != 1 or any(weight.requires_grad for weight in weights):
            return None
        used = (layer.active_adapters == active and active[0] in layer.lora_A for layer in layers)
        idle = (layer.disable_adapters or layer.merged for layer in layers)
        return active[0] if all(used) and not any(idle) else None


def base_of(layer: nn.Module) -> nn.Linear:
    """The layer itself, without LoRA."""
    base: nn.Linear = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer  # type: ignore[assignment]
    return base


def layers_together(root: nn.Module) -> Iterator[Sequence[nn.Module]]:
    """Lists of linear layers in ``root`` that read one input, some with LoRA; every layer with LoRA is in one."""
    for path, parent in root.named_modules():
        linear = {name: child for name, child in parent.named_children() if isinstance(child, LoraLinear | nn.Linear)}
        roles = next((list(row) for row in ROLES if linear.keys() >= set(row)), [])
        names = [roles[:1], roles[1:]] if _CROSS.search(path) else [roles]
        names += [[name] for name in linear if name not in roles]
        for layers in ([linear[name] for name in together] for together in names):
            adapted = any(isinstance(layer, LoraLinear) for layer in layers)
            if adapted and all(type(base_of(layer)) is nn.Linear for layer in layers):  # GPT-2's Conv1D goes PEFT's way
                yield layers


def gathered(groups: Iterable[Together], name: str, dtype: torch.dtype) -> dict[Together, Matrices]:
    """An adapter's matrices of many layers in one type. All are joined, cast and parted again, so their gradients are, too."""
    leaves: list[Tensor] = []
    shapes: list[tuple[int, ...]] = []
    groups = list(groups)
    for group in groups:
        downs = [layer.lora_A[name].get_parameter("weight") for layer in group.adapted]
        ups = [layer.lora_B[name].get_parameter("weight") for layer in group.adapted]
        leaves += [*downs, *ups]
        shapes += [(sum(map(len, downs)), downs[0].shape[1]), *(tuple(up.shape) for up in ups)]
    whole = torch.cat([leaf.reshape(-1) for leaf in leaves]).to(dtype)
    pieces = zip(whole.split(list(map(math.prod, shapes))), shapes, strict=True)
    parts = iter([piece.view(shape) for piece, shape in pieces])
    return {group: (next(parts), [next(parts) for _ in group.adapted]) for group in groups}
