"""LoRA adapters of BLIP-2, one per trained modality, by PEFT; and the one owner of which of them is active.

Adapters sit in q and v of the Q-Former's attentions and of the LLM's (paper, section 3.3; released code: rank 8, alpha 1). They wrap an
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
from transformers import Blip2ForConditionalGeneration

from rb.core.config import LoraConfig
from rb.core.seeding import torch_generator

QFORMER_TARGETS = r"qformer\..*\.(?:attention|crossattention)\.attention\.(?:query|value)"
# Names of the query and value projections in the attentions of the LLM families; the first pair found is used.
LLM_QUERY_VALUE = (("q_proj", "v_proj"), ("q", "v"), ("query", "value"))


def lora_targets(blip2: Blip2ForConditionalGeneration) -> str:
    """The regular expression (on full module names) of the layers that get LoRA.

    Raises:
        ValueError: the LLM names its query and value projections in none of the known ways; lists its linear layers.
    """
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in blip2.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    for query, value in LLM_QUERY_VALUE:
        if query in linear and value in linear:
            return rf"{QFORMER_TARGETS}|language_model\..*\.(?:{re.escape(query)}|{re.escape(value)})"
    raise ValueError(
        f"no LoRA targets known in {type(blip2.language_model).__name__}: its linear layers are {', '.join(sorted(linear))}; "
        "add its query and value names to LLM_QUERY_VALUE"
    )


class Adapters:
    """The PEFT model around BLIP-2 and the switch between its adapters.

    Not an ``nn.Module``: the parameters belong to BLIP-2's layers; this only holds the list of layers to switch.

    Args:
        blip2: wrapped in place.
        modalities: one adapter each; may be empty (then nothing is wrapped).
        config: rank and alpha.
        seed: keys A's initialisation; B starts at zero, so a new adapter changes nothing.
    """

    def __init__(
        self, blip2: Blip2ForConditionalGeneration, modalities: Iterable[str], config: LoraConfig, seed: int = 0
    ) -> None:
        self.modalities = tuple(modalities)
        self.peft: PeftModel | None = None
        self._layers: list[LoraLayer] = []
        if not self.modalities:
            return
        targets = lora_targets(blip2)
        for modality in self.modalities:
            settings = PeftLoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets)
            if self.peft is None:
                self.peft = get_peft_model(blip2, settings, adapter_name=modality)
            else:
                self.peft.add_adapter(modality, settings)
        assert self.peft is not None
        self._layers = [module for module in blip2.modules() if isinstance(module, LoraLayer)]
        self._initialise(seed)
        # PEFT leaves all but the first adapter frozen; the engine fixes its set of parameters once, so all must be on from the start.
        for name, parameter in blip2.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.activate(None)

    def _initialise(self, seed: int) -> None:
        """A: Kaiming uniform, keyed by (seed, adapter, layer); recent transformers switch ``nn.init`` off while loading, so check it."""
        for index, layer in enumerate(self._layers):
            for modality in self.modalities:
                weight = layer.lora_A[modality].weight
                if weight.is_meta:
                    continue
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
