"""The frozen LLM behind the soft prompt: caption logits for training, generated captions for prediction.

Two kinds: decoders (OPT; any causal LM of transformers that takes ``inputs_embeds``) and encoder-decoders (T5). Embeddings are
concatenated here, because the library does not check the number of image tokens. Shapes: B micro-batch, Q query tokens, Tp prompt tokens,
T caption tokens with the end token, L LLM width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rb.core.batch import Batch
from rb.core.config import DecodeConfig
from rb.core.text import TextProcessor


def llm_kind(language_model: PreTrainedModel) -> str:
    """``"encoder_decoder"`` or ``"decoder"``, as ``rb.core.text`` names them."""
    return "encoder_decoder" if language_model.config.is_encoder_decoder else "decoder"


def _context(language_model: PreTrainedModel, soft_prompt: Tensor, prompt_ids: Tensor) -> Tensor:
    """[soft prompt | prompt] as embeddings [B, Q + Tp, L]."""
    embed = language_model.get_input_embeddings()
    soft_prompt = soft_prompt.to(embed.get_parameter("weight").dtype)
    if prompt_ids.shape[1] == 0:
        return soft_prompt
    return torch.cat([soft_prompt, embed(prompt_ids).expand(soft_prompt.shape[0], -1, -1)], dim=1)


def caption_logits(language_model: PreTrainedModel, soft_prompt: Tensor, batch: Batch) -> Tensor:
    """Logits of every caption token given what comes before it, [B, T, vocabulary]; nothing is computed at other positions.

    Args:
        soft_prompt: [B, Q, L], the projected query output.
        batch: its ``llm_ids`` [B, T] are both input and target; the caller weighs padding out.
    """
    context = _context(language_model, soft_prompt, batch.prompt_ids)  # [B, Q + Tp, L]
    if llm_kind(language_model) == "encoder_decoder":
        start = torch.full_like(batch.llm_ids[:, :1], language_model.config.decoder_start_token_id)
        return language_model(
            inputs_embeds=context,
            decoder_input_ids=torch.cat([start, batch.llm_ids[:, :-1]], dim=1),
            use_cache=False,
        ).logits
    # Causal LMs with rotary positions (Llama) make the library wait once per forward pass all the same (packed sequences); OPT does not.
    # No mask anywhere: padding is on the right, so no token that counts can see it; transformers would look at a mask on the host.
    inputs = torch.cat([context, language_model.get_input_embeddings()(batch.llm_ids)], dim=1)  # [B, Q + Tp + T, L]
    num_targets = batch.llm_ids.shape[1]
    logits = language_model(
        inputs_embeds=inputs,
        use_cache=False,
        # The token at place i is predicted at place i - 1; the last place predicts nothing we know.
        logits_to_keep=num_targets + 1,
    ).logits
    return logits[:, -num_targets - 1 : -1]


@dataclass(frozen=True)
class Generation:
    """How captions are generated: what the LLM reads behind the soft prompt, how it is searched, where a caption ends.

    Attributes:
        prompt_ids: [1, Tp], on the model's device.
        decode: beams and lengths.
    """

    prompt_ids: Tensor
    decode: DecodeConfig
    end_token_id: int
    pad_token_id: int

    @classmethod
    def of(
        cls, text: TextProcessor, modality: str, decode: DecodeConfig, device: torch.device | str = "cpu"
    ) -> Generation:
        """For captions of a modality, with the prompt and the special tokens of a foundation's tokenizer."""
        return cls(text.encode_prompt(modality).to(device), decode, text.end_token_id, text.pad_token_id)


@torch.no_grad()
def generate(language_model: PreTrainedModel, soft_prompt: Tensor, how: Generation) -> Tensor:
    """Generated token ids [B, <= max_new_tokens], padded right, by beam search (greedy with one beam)."""
    context, decode = _context(language_model, soft_prompt, how.prompt_ids), how.decode
    settings = GenerationConfig(
        num_beams=decode.num_beams,
        max_new_tokens=decode.max_new_tokens,
        min_new_tokens=decode.min_new_tokens,
        length_penalty=decode.length_penalty,
        do_sample=False,
        eos_token_id=how.end_token_id,
        pad_token_id=how.pad_token_id,
        bos_token_id=getattr(language_model.config, "bos_token_id", None),  # T5 has none
        decoder_start_token_id=getattr(language_model.config, "decoder_start_token_id", None),
    )
    generate: Callable[..., Tensor] = cast(
        Any, language_model
    ).generate  # every LLM here has it; PreTrainedModel does not declare it
    return generate(
        inputs_embeds=context,
        attention_mask=context.new_ones(context.shape[:2], dtype=torch.int64),
        generation_config=settings,
    )
