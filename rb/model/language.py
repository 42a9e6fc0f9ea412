"""The frozen LLM behind the soft prompt: caption logits for training, generated captions for prediction.

Two kinds: decoders (OPT; any causal LM of transformers that takes ``inputs_embeds``) and encoder-decoders (T5). Embeddings are
concatenated here, because the library does not check the number of image tokens. Shapes: B micro-batch, O its subjects, Q query tokens, Tp prompt tokens,
T caption tokens with the end token, L LLM width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

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

    What stands before several captions of one subject is read once.

    Args:
        soft_prompt: [O, Q, L], the projected query output of each subject (of each row where ``batch.subject_rows`` is none).
        batch: its ``llm_ids`` [B, T] are both input and target; the caller weighs padding out.
    """
    context = _context(language_model, soft_prompt, batch.prompt_ids)  # [O, Q + Tp, L]
    if llm_kind(language_model) == "encoder_decoder":
        return _by_decoder_of_two(language_model, context, batch)
    if batch.subject_rows is not None:
        return _behind_shared_contexts(language_model, context, batch.llm_ids, batch.subject_rows)
    # Causal LMs with rotary positions (Llama) make the library wait once per forward pass all the same (packed sequences); OPT does not.
    # No mask anywhere: padding is on the right, so no token that counts can see it; transformers would look at a mask on the host.
    # The last token is an input of nothing, so it is none.
    words = language_model.get_input_embeddings()(batch.llm_ids[:, :-1])
    inputs = torch.cat([context, words], dim=1)  # [B, Q + Tp + T - 1, L]
    # The token at place i is predicted at place i - 1.
    return language_model(inputs_embeds=inputs, use_cache=False, logits_to_keep=batch.llm_ids.shape[1]).logits


def _by_decoder_of_two(language_model: PreTrainedModel, context: Tensor, batch: Batch) -> Tensor:
    """Of an encoder-decoder: the encoder reads the contexts [O, Q + Tp, L], the decoder writes the captions."""
    start = torch.full_like(batch.llm_ids[:, :1], language_model.config.decoder_start_token_id)
    given: dict[str, Any] = {"inputs_embeds": context}
    if batch.subject_rows is not None:
        read = cast(Any, language_model).get_encoder()(inputs_embeds=context).last_hidden_state
        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=read[batch.subject_rows])}
    shifted = torch.cat([start, batch.llm_ids[:, :-1]], dim=1)
    return language_model(decoder_input_ids=shifted, use_cache=False, **given).logits


def _behind_shared_contexts(
    language_model: PreTrainedModel, context: Tensor, llm_ids: Tensor, context_rows: Tensor
) -> Tensor:
    """Of a decoder: one pass over the contexts [O, Q + Tp, L], whose keys and values go to each of their captions; one over the captions."""
    read = language_model(inputs_embeds=context, use_cache=True, logits_to_keep=1)
    first = read.logits[context_rows]  # [B, 1, vocabulary]
    if llm_ids.shape[1] == 1:
        return first
    read.past_key_values.batch_select_indices(context_rows)
    embeds = language_model.get_input_embeddings()(llm_ids[:, :-1])  # [B, T - 1, L]; the last token predicts nothing
    rest = language_model(inputs_embeds=embeds, past_key_values=read.past_key_values, use_cache=True).logits
    return torch.cat([first, rest], dim=1)


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
def generate(
    language_model: PreTrainedModel, soft_prompt: Tensor, how: Generation, reads_for_all_beams: bool = True
) -> Tensor:
    """Generated token ids [B, <= max_new_tokens], padded right, by beam search (greedy with one beam).

    The search is transformers' own. Of a decoder, what stands before a caption is read once for all of its beams; transformers alone, without
    ``reads_for_all_beams``, reads it once for each.
    """
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
    # Every LLM here has it; PreTrainedModel does not declare it.
    generate: Callable[..., Tensor] = cast(Any, language_model).generate
    return generate(
        inputs_embeds=context,
        attention_mask=context.new_ones(context.shape[:2], dtype=torch.int64),
        generation_config=settings,
        **(_read_for_all_beams(language_model, context, decode.num_beams) if reads_for_all_beams else {}),
    )


def _read_for_all_beams(language_model: PreTrainedModel, context: Tensor, num_beams: int) -> dict[str, Any]:
    """Keys and values of contexts [B, Q + Tp, L], repeated for the beams of each, as arguments of transformers' ``generate``.

    Without them it reads a context once for every beam. It reads the last place itself, whose logits it wants. An encoder-decoder reads its
    contexts once anyway.
    """
    if llm_kind(language_model) == "encoder_decoder" or num_beams == 1 or context.shape[1] == 1:
        return {}
    read = language_model(inputs_embeds=context[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
    read.batch_repeat_interleave(num_beams)
    return {"past_key_values": read}
