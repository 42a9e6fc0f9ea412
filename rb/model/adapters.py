"""LoRA adapters of BLIP-2 by PEFT, one per trained modality or one for all; and the one owner of which of them is active.

Adapters sit in the query and value projections of the Q-Former's attentions and of the LLM's (paper Fig. 1; rank 8 and alpha 1 are the
released code's). They wrap an intact ``Blip2ForConditionalGeneration``, so that PEFT's own files load into plain transformers. With none
active the model is BLIP-2, bit for bit. Modules and parameters are PEFT's; ``projections.py`` computes them in fewer kernels.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import Blip2ForConditionalGeneration, Blip2QFormerModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rb.core.config import LoraConfig
from rb.core.seeding import torch_generator
from rb.model.projections import Matrices, Together, gathered, layers_together
from rb.sources.table import source_of

QUERY_VALUE_OF_QFORMER = r".*\.(?:attention|crossattention)\.attention\.(?:query|value)"
QFORMER_TARGETS = rf"qformer\.{QUERY_VALUE_OF_QFORMER}"
# The table of LLM families: names of the layers that get LoRA. The first row whose names an LLM has is used; ``model.lora.targets``
# overrides it. Where query, key and value are one layer, the key gets LoRA too.
LLM_TARGETS = (
    ("q_proj", "v_proj"),  # OPT, Llama, Mistral, Qwen2, Gemma, BART
    ("q", "v"),  # T5
    ("query", "value"),  # BERT's kind
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2 (Conv1D)
    ("query_key_value",),  # BLOOM, Falcon
)
# The matrices of all layers of a part: (part, adapter, type, with gradient) -> group of layers -> matrices.
Held = dict[tuple[int, str, torch.dtype, bool], dict[Together, Matrices]]


def llm_targets(language_model: PreTrainedModel, names: tuple[str, ...] = ()) -> str:
    """The regular expression, on full module names of BLIP-2, of the LLM's layers that get LoRA.

    Args:
        names: ``model.lora.targets``; empty looks the family up in ``LLM_TARGETS``.

    Raises:
        ValueError: a name that no linear layer of the LLM has, or a family without a row; lists the linear layers.
    """
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    llm = type(language_model).__name__
    listed = ", ".join(sorted(linear))
    unknown = [name for name in names if name not in linear]
    if unknown:
        raise ValueError(
            f"model.lora.targets: {llm} has no linear layer {unknown[0]!r}; its linear layers are {listed}"
        )
    found = names or next((row for row in LLM_TARGETS if linear.issuperset(row)), ())
    if not found:
        raise ValueError(
            f"no LoRA targets are known for {llm}; its linear layers are {listed}; "
            "name the query and value projections among them, e.g. model.lora.targets=[q_proj,v_proj]"
        )
    return rf"language_model\..*\.(?:{'|'.join(map(re.escape, found))})"


def _add(wrapped: PeftModel | None, root: nn.Module | None, name: str, config: LoraConfig, targets: str) -> PeftModel:
    """One more adapter around ``root``."""
    alpha: Any = config.alpha  # PEFT declares an integer, but only divides by the rank
    settings = PeftLoraConfig(r=config.r, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():
        # GPT-2's Conv1D layers hold their weight transposed; PEFT sees it layer by layer and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        if wrapped is None:
            assert root is not None  # the first adapter of a model says what is wrapped
            return get_peft_model(root, settings, adapter_name=name)
        wrapped.add_adapter(name, settings)
    return wrapped


class Adapters:
    """The PEFT model around BLIP-2 and the switch between its adapters.

    Not an ``nn.Module``: the parameters belong to BLIP-2's layers; this only holds the list of layers to switch.

    Args:
        blip2: wrapped in place.
        modalities: those that train; may be empty (then nothing is wrapped).
        config: rank, alpha, where adapters sit, and whether there is one for each modality or one for all.
        seed: keys A's initialisation; B starts at zero, so a new adapter changes nothing.
        point_qformer: a second Q-Former for points (``model.point_qformer: separate``): their adapters sit in it instead of BLIP-2's.
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        modalities: Iterable[str],
        config: LoraConfig,
        seed: int = 0,
        point_qformer: Blip2QFormerModel | None = None,
    ) -> None:
        # Modality -> name of its adapter.
        self.names = {modality: config.adapter_of(modality) for modality in modalities}
        self.peft: PeftModel | None = None
        self.point_peft: PeftModel | None = None
        self._layers: list[LoraLayer] = []
        self._llm_layers: list[LoraLayer] = []
        self._groups: list[list[Together]] = []  # of the Q-Former and of the LLM
        self._held: Held | None = None
        self._active: str | None = None
        if not self.names:
            return
        # Before the first adapter: wrapped layers have other names.
        in_llm = llm_targets(blip2.language_model, config.targets) if config.llm else None
        in_blip2 = "|".join(t for t in (QFORMER_TARGETS if config.qformer else None, in_llm) if t)
        for name, modality in {name: modality for modality, name in self.names.items()}.items():
            apart = point_qformer is not None and source_of(modality).point_encoder
            targets = in_llm if apart else in_blip2
            if targets is not None:
                self.peft = _add(self.peft, blip2, name, config, targets)
            if apart and config.qformer:
                self.point_peft = _add(self.point_peft, point_qformer, name, config, QUERY_VALUE_OF_QFORMER)
        self._llm_layers = [module for module in blip2.language_model.modules() if isinstance(module, LoraLayer)]
        roots = (blip2,) if point_qformer is None else (blip2, point_qformer)
        self._layers = [module for root in roots for module in root.modules() if isinstance(module, LoraLayer)]
        self._initialise(seed)
        # PEFT leaves all but the first adapter frozen; the engine fixes its set of parameters once, so all must be on from the start.
        for name, parameter in blip2.named_parameters():
            parameter.requires_grad_("lora_" in name)
        if point_qformer is not None:
            point_qformer.requires_grad_(requires_grad=True)  # it trains whole, so its layers stay PEFT's
        for part in (blip2.qformer, blip2.language_model):
            self._groups.append([Together(layers, self._matrices) for layers in layers_together(part)])
        self.activate(None)

    def _initialise(self, seed: int) -> None:
        """A: Kaiming uniform, keyed by (seed, adapter, layer); recent transformers switch ``nn.init`` off while loading, so check it."""
        for index, layer in enumerate(self._layers):
            for name in layer.lora_A:
                weight = layer.lora_A[name].get_parameter("weight")
                if weight.is_meta:
                    continue
                bound = 1.0 / math.sqrt(weight.shape[1])  # kaiming_uniform with a = sqrt(5)
                draw = (
                    torch.rand(weight.shape, generator=torch_generator(seed, "lora", name, index)) * (2 * bound) - bound
                )
                with torch.no_grad():
                    weight.copy_(draw)
                    layer.lora_B[name].get_parameter("weight").zero_()

    def activate(self, modality: str | None) -> None:
        """Make ``modality``'s adapter the active one; none (or a modality without adapter) is plain BLIP-2.

        PEFT's ``set_adapter`` flips ``requires_grad`` of the others and walks the whole model (14-37 ms); this sets the active name on
        the cached layers. The private attribute is pinned by a test.
        """
        self._active = modality if modality in self.names else None
        active = [] if self._active is None else [self.names[self._active]]
        for layer in self._layers:
            layer._active_adapter = active  # noqa: SLF001

    @property
    def active(self) -> str | None:
        """The modality whose adapter is active, none for plain BLIP-2."""
        return self._active

    @property
    def held_now(self) -> Held | None:
        """What ``held`` holds, to go on with it."""
        return self._held

    @contextmanager
    def held(self, matrices: Held | None = None) -> Iterator[None]:
        """Within, an adapter's matrices are gathered and cast once for all layers of the Q-Former, and once for all of the LLM.

        Nothing that trains may change meanwhile. Outside each layer gathers its own at each use.

        Args:
            matrices: of ``held_now``, gathered before; none: new ones.
        """
        before, self._held = self._held, {} if matrices is None else matrices
        try:
            yield
        finally:
            self._held = before

    def _matrices(self, group: Together, name: str, dtype: torch.dtype) -> Matrices:
        if self._held is None:
            return gathered([group], name, dtype)[group]
        part = next(index for index, groups in enumerate(self._groups) if group in groups)
        key = (part, name, dtype, torch.is_grad_enabled())
        if key not in self._held:
            self._held[key] = gathered(self._groups[part], name, dtype)
        return self._held[key][group]

    @contextmanager
    def merged_in_llm(self, wanted: bool | None = True) -> Iterator[None]:
        """Within, the LLM's layers hold the sum of their weight and the active adapter's product, in a copy, and LoRA's own kernels do not run.

        The weights themselves are not touched, so adapters switch as before. The copies last as long as the context: making them costs about as
        much as one pass over them.

        Args:
            wanted: none where the weights are float32 (``decode.merge_lora``).
        """
        name = "" if self._active is None else self.names[self._active]
        layers = [layer for layer in self._llm_layers if name in layer.lora_A]
        weights = [layer.get_base_layer().get_parameter("weight") for layer in layers]
        if wanted is False or (wanted is None and any(weight.dtype != torch.float32 for weight in weights)):
            layers, weights = [], []
        try:
            for layer, weight in zip(layers, weights, strict=True):
                layer.get_base_layer().register_parameter("weight", _sum_of(layer, name, weight))
                layer._active_adapter = []  # noqa: SLF001
            yield
        finally:
            for layer, weight in zip(layers, weights, strict=True):
                layer.get_base_layer().register_parameter("weight", weight)
                layer._active_adapter = [name]  # noqa: SLF001


def _sum_of(layer: LoraLayer, name: str, weight: nn.Parameter) -> nn.Parameter:
    """A layer's weight plus what its adapter adds, rounded once."""
    a, b = (part[name].get_parameter("weight").detach().float() for part in (layer.lora_A, layer.lora_B))
    added = (b @ a) * layer.scaling[name]
    stored = added.T if getattr(layer, "fan_in_fan_out", False) else added  # GPT-2's Conv1D holds its weight transposed
    return nn.Parameter((weight.detach().float() + stored).to(weight.dtype), requires_grad=False)
