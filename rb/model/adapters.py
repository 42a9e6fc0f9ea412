"""LoRA adapters of BLIP-2, one per trained modality, by PEFT; and the one owner of which of them is active.

Adapters sit in q and v of the Q-Former's attentions and of the LLM's (paper Fig. 1; rank 8 and alpha 1 are the released code's). They wrap an
intact ``Blip2ForConditionalGeneration``, so that PEFT's own files load into plain transformers. With none active the model is BLIP-2, bit
for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import Blip2ForConditionalGeneration, Blip2QFormerModel

from rb.core.config import LoraConfig
from rb.core.modality import modality_spec
from rb.core.seeding import torch_generator

QUERY_VALUE_OF_QFORMER = r".*\.(?:attention|crossattention)\.attention\.(?:query|value)"
QFORMER_TARGETS = rf"qformer\.{QUERY_VALUE_OF_QFORMER}"
# Names of the query and value projections in the attentions of the LLM families; the first pair found is used.
LLM_QUERY_VALUE = (("q_proj", "v_proj"), ("q", "v"), ("query", "value"))


def lora_targets(blip2: Blip2ForConditionalGeneration, qformer: bool = True, llm: bool = True) -> str:
    """The regular expression (on full module names) of the layers that get LoRA; of BLIP-2's Q-Former, of the LLM, or of both.

    Raises:
        ValueError: the LLM names its query and value projections in none of the known ways; lists its linear layers.
    """
    if not llm:
        return QFORMER_TARGETS
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in blip2.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    for query, value in LLM_QUERY_VALUE:
        if query in linear and value in linear:
            in_llm = rf"language_model\..*\.(?:{re.escape(query)}|{re.escape(value)})"
            return f"{QFORMER_TARGETS}|{in_llm}" if qformer else in_llm
    raise ValueError(
        f"no LoRA targets known in {type(blip2.language_model).__name__}: its linear layers are {', '.join(sorted(linear))}; "
        "add its query and value names to LLM_QUERY_VALUE"
    )


def _add(
    wrapped: PeftModel | None, root: nn.Module | None, modality: str, config: LoraConfig, targets: str
) -> PeftModel:
    """One more adapter around ``root``."""
    settings = PeftLoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets)
    if wrapped is None:
        return get_peft_model(root, settings, adapter_name=modality)
    wrapped.add_adapter(modality, settings)
    return wrapped


class Adapters:
    """The PEFT model around BLIP-2 and the switch between its adapters.

    Not an ``nn.Module``: the parameters belong to BLIP-2's layers; this only holds the list of layers to switch.

    Args:
        blip2: wrapped in place.
        modalities: one adapter each; may be empty (then nothing is wrapped).
        config: rank, alpha, and whether the LLM has any.
        seed: keys A's initialisation; B starts at zero, so a new adapter changes nothing.
        point_qformer: of its own for points (``model.point_qformer: separate``): their adapters sit in it instead of BLIP-2's.
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        modalities: Iterable[str],
        config: LoraConfig,
        seed: int = 0,
        point_qformer: Blip2QFormerModel | None = None,
    ) -> None:
        self.modalities = tuple(modalities)
        self.peft: PeftModel | None = None
        self.point_peft: PeftModel | None = None
        self._layers: list[LoraLayer] = []
        if not self.modalities:
            return
        # Before the first adapter: wrapped layers have other names.
        in_llm = lora_targets(blip2, qformer=False) if config.llm else None
        in_blip2 = lora_targets(blip2, llm=config.llm)
        for modality in self.modalities:
            apart = point_qformer is not None and modality_spec(modality).source == "points"
            targets = in_llm if apart else in_blip2
            if targets is not None:
                self.peft = _add(self.peft, blip2, modality, config, targets)
            if apart:
                self.point_peft = _add(self.point_peft, point_qformer, modality, config, QUERY_VALUE_OF_QFORMER)
        roots = (blip2,) if point_qformer is None else (blip2, point_qformer)
        self._layers = [module for root in roots for module in root.modules() if isinstance(module, LoraLayer)]
        self._initialise(seed)
        # PEFT leaves all but the first adapter frozen; the engine fixes its set of parameters once, so all must be on from the start.
        for name, parameter in blip2.named_parameters():
            parameter.requires_grad_("lora_" in name)
        if point_qformer is not None:
            point_qformer.requires_grad_(requires_grad=True)  # it trains whole
        self.activate(None)

    def _initialise(self, seed: int) -> None:
        """A: Kaiming uniform, keyed by (seed, adapter, layer); recent transformers switch ``nn.init`` off while loading, so check it."""
        for index, layer in enumerate(self._layers):
            for modality in self.modalities:
                if modality not in layer.lora_A or layer.lora_A[modality].weight.is_meta:
                    continue
                weight = layer.lora_A[modality].weight
                bound = 1.0 / math.sqrt(weight.shape[1])  # kaiming_uniform with a = sqrt(5)
                draw = (
                    torch.rand(weight.shape, generator=torch_generator(seed, "lora", modality, index)) * (2 * bound)
                    - bound
                )
                with torch.no_grad():
                    weight.copy_(draw)
                    layer.lora_B[modality].weight.zero_()

    def activate(self, modality: str | None) -> None:
        """Make ``modality``'s adapter the active one; none (or a modality without adapter) is plain BLIP-2.

        PEFT's ``set_adapter`` flips ``requires_grad`` of the others and walks the whole model (14-37 ms); this sets the active name on
        the cached layers. The private attribute is pinned by a test.
        """
        active = [modality] if modality in self.modalities else []
        for layer in self._layers:
            layer._active_adapter = active  # noqa: SLF001

    @property
    def active(self) -> str | None:
        """The active adapter's modality, none for plain BLIP-2."""
        names = self._layers[0].active_adapters if self._layers else []
        return names[0] if names else None
