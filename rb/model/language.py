"""The frozen LLM behind the soft prompt: logits of captions for training, generated captions for prediction.

Two kinds: decoders (OPT; any causal LM of transformers that takes ``inputs_embeds``) and encoder-decoders (T5). Embeddings are
concatenated here, because the library does not check the number of image tokens. Shapes: B micro-batch, O its subjects, Q query tokens, Tp prompt tokens,
T caption tokens with the end token, C tokens before a caption, M and N as in ``packing.py``, L LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rb.core.batch import Batch
from rb.core.config import DecodeConfig
from rb.core.text import TextProcessor
from rb.model.packing import Packing, packs


def llm_kind(language_model: PreTrainedModel) -> str:
    """``"encoder_decoder"`` or ``"decoder"``, as ``rb.core.text`` names them."""
    return "encoder_decoder" if language_model.config.is_encoder_decoder else "decoder"


def _context(language_model: PreTrainedModel, soft_prompt: Tensor, prompt_ids: Tensor) -> Tensor:
    """[soft prompt | prompt] as embeddings [B, Q + Tp, L]. ``prompt_ids``: [1, Tp] of all rows, or [B, Tp]."""
    embed = language_model.get_input_embeddings()
    soft_prompt = soft_prompt.to(embed.get_parameter("weight").dtype)
    if prompt_ids.shape[1] == 0:
        return soft_prompt
    return torch.cat([soft_prompt, embed(prompt_ids).expand(soft_prompt.shape[0], -1, -1)], dim=1)


class Predicted(NamedTuple):
    """What an LLM says about tokens of captions, in any order.

    Attributes:
        logits: [..., vocabulary]. labels: [...] int64, the tokens. weights: [...] float32, 0 where a token does not count.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor


def predict_captions(language_model: PreTrainedModel, soft_prompt: Tensor, batch: Batch) -> Predicted:
    """Logits of every caption token given what comes before it; nothing is computed at other positions.

    Where the LLM takes it (``packing.py``), no padding is read, and what stands before several captions of one subject is read once.

    Args:
        soft_prompt: [O, Q, L], the projected query output of each subject (of each row where ``batch.subject_rows`` is none).
        batch: its ``llm_ids`` [B, T] are both input and target.
    """
    context, given = _before_captions(language_model, _context(language_model, soft_prompt, batch.prompt_ids))
    if packs(language_model, context.shape[1] + batch.llm_ids.shape[1]):
        return _packed(language_model, context, batch, given)
    return _padded(language_model, context, batch, given)


def _before_captions(language_model: PreTrainedModel, context: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Contexts [O, Q + Tp, L] to (what the decoder reads before a caption [O, C, L], arguments of the LLM)."""
    given: dict[str, Any] = {"use_cache": False}
    if llm_kind(language_model) == "encoder_decoder":
        # The encoder reads the contexts, the decoder writes the captions behind its start token.
        read = cast(Any, language_model).get_encoder()(inputs_embeds=context).last_hidden_state
        start = torch.full((len(context), 1), language_model.config.decoder_start_token_id, device=context.device)
        context = language_model.get_input_embeddings()(start)  # [O, 1, L]
        given["encoder_outputs"] = BaseModelOutput(last_hidden_state=read)
    return context, given


def _inputs(given: dict[str, Any]) -> str:
    """The name of an LLM's argument for what it reads as embeddings before it writes."""
    return "decoder_inputs_embeds" if "encoder_outputs" in given else "inputs_embeds"


def _packed(language_model: PreTrainedModel, context: Tensor, batch: Batch, given: dict[str, Any]) -> Predicted:
    """All contexts [O, C, L] and captions as one row of tokens without padding."""
    packing = Packing.of(batch, context.shape[1])
    ids = batch.llm_ids.flatten()
    words = language_model.get_input_embeddings()(ids[batch.llm_inputs])  # [M, L]
    given[_inputs(given)] = torch.cat([context.flatten(0, 1), words])[None]  # [1, N, L]
    if "encoder_outputs" not in given:
        # The first token of a caption is predicted where its context ends.
        last = torch.arange(1, len(context) + 1, device=ids.device) * context.shape[1] - 1
        given["logits_to_keep"] = torch.cat(
            [last, len(context) * context.shape[1] + torch.arange(len(words), device=ids.device)]
        )
        given["position_ids"] = packing.positions
        given["attention_mask"] = context.new_zeros(1, 1, 1, 1)  # of four axes: no LLM makes one, ours is not read
    logits = language_model(**given, packing=packing).logits[0]  # [O + M, vocabulary]
    if batch.subject_rows is not None:
        others = torch.arange(len(context), len(logits), device=ids.device)
        logits = logits[torch.cat([batch.subject_rows, others])]
    labels = torch.cat([batch.llm_ids[:, 0], ids[batch.llm_inputs + 1]])
    return Predicted(logits, labels, torch.ones(len(labels), device=ids.device))


def _padded(language_model: PreTrainedModel, context: Tensor, batch: Batch, given: dict[str, Any]) -> Predicted:
    """A row for each caption, with its own context, padded to the longest."""
    if batch.subject_rows is not None:
        context = context[batch.subject_rows]
        if "encoder_outputs" in given:
            read = given["encoder_outputs"].last_hidden_state
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=read[batch.subject_rows])
    if "encoder_outputs" not in given:
        given["logits_to_keep"] = batch.llm_ids.shape[1]
    # Causal LMs with rotary positions (Llama) make the library wait once per forward pass all the same (it looks for packed sequences).
    # No mask anywhere: padding is on the right, so no token that counts can see it; transformers would look at a mask on the host.
    # The last token is an input of nothing, so it is none. The token at place i is predicted at place i - 1.
    words = language_model.get_input_embeddings()(batch.llm_ids[:, :-1])
    given[_inputs(given)] = torch.cat([context, words], dim=1)  # [B, C + T - 1, L]
    return Predicted(language_model(**given).logits, batch.llm_ids, batch.llm_mask.float())


@dataclass(frozen=True)
class Generation:
    """How captions are generated: what the LLM reads behind the soft prompt, how it is searched, where a caption ends.

    Attributes:
        prompt_ids: [1, Tp] for all rows, or [B, Tp], on the model's device.
        prompt_mask: [B, Tp] int64, 0 where ``prompt_ids`` are padding; none: nowhere.
        decode: beams and lengths.
    """

    prompt_ids: Tensor
    decode: DecodeConfig
    end_token_id: int
    pad_token_id: int
    prompt_mask: Tensor | None = None

    @classmethod
    def of(
        cls, text: TextProcessor, modality: str, decode: DecodeConfig, device: torch.device | str = "cpu"
    ) -> Generation:
        """For captions of a modality, with the prompt and the special tokens of a foundation's tokenizer."""
        return cls(text.encode_prompt(modality).to(device), decode, text.end_token_id, text.pad_token_id)

    @classmethod
    def of_prompts(
        cls, text: TextProcessor, prompts: Sequence[str], decode: DecodeConfig, device: torch.device | str = "cpu"
    ) -> Generation:
        """For rows with a prompt each."""
        ids, mask = text.encode_prompts(prompts)
        return cls(ids.to(device), decode, text.end_token_id, text.pad_token_id, mask.to(device))


@torch.no_grad()
def generate(
    language_model: PreTrainedModel, soft_prompt: Tensor, how: Generation, reads_for_all_beams: bool = True
) -> Tensor:
    """Generated token ids [B, <= max_new_tokens], padded right, by beam search (greedy with one beam).

    The search is transformers' own. Of a decoder, what stands before a caption is read once for all of its beams; transformers alone, without
    ``reads_for_all_beams``, reads it once for each.
    """
    context, decode = _context(language_model, soft_prompt, how.prompt_ids), how.decode
    mask = context.new_ones(context.shape[:2], dtype=torch.int64)
    if how.prompt_mask is not None:
        mask[:, soft_prompt.shape[1] :] = how.prompt_mask
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
        attention_mask=mask,
        generation_config=settings,
        **(_read_for_all_beams(language_model, context, mask, how) if reads_for_all_beams else {}),
    )


@torch.no_grad()
def log_probabilities(language_model: PreTrainedModel, soft_prompt: Tensor, how: Generation, ids: Tensor) -> Tensor:
    """Log-probability of each caption [B, T] that ``generate`` made: the sum over its tokens, the end token included. [B] float32, nats.

    One pass over the captions; nothing about the search enters it.
    """
    assert how.prompt_mask is None, "prompts of their own are not asked for here"
    context, given = _before_captions(language_model, _context(language_model, soft_prompt, how.prompt_ids))
    if "encoder_outputs" in given:
        ids = ids[:, 1:]  # the first is the decoder's start token, which is not written
    else:
        given["logits_to_keep"] = ids.shape[1]
    words = language_model.get_input_embeddings()(ids[:, :-1])
    given[_inputs(given)] = torch.cat([context, words], dim=1)  # [B, C + T - 1, L]
    logits = language_model(**given).logits[:, -ids.shape[1] :].float()
    of_token = logits.log_softmax(dim=-1).gather(-1, ids[..., None]).squeeze(-1)  # [B, T]
    ends = (ids == how.end_token_id).long()
    return (of_token * (ends.cumsum(dim=1) - ends == 0)).sum(dim=1)


def _read_for_all_beams(
    language_model: PreTrainedModel, context: Tensor, mask: Tensor, how: Generation
) -> dict[str, Any]:
    """Keys and values of contexts [B, Q + Tp, L], repeated for the beams of each, as arguments of transformers' ``generate``.

    Without them it reads a context once for every beam. It reads the last place itself, whose logits it wants. An encoder-decoder reads its
    contexts once anyway.
    """
    if llm_kind(language_model) == "encoder_decoder" or how.decode.num_beams == 1 or context.shape[1] == 1:
        return {}
    given: dict[str, Any] = {}
    if how.prompt_mask is not None:  # places as the library's ``generate`` counts them
        places = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
        given = {"attention_mask": mask[:, :-1], "position_ids": places[:, :-1]}
    read = language_model(inputs_embeds=context[:, :-1], use_cache=True, logits_to_keep=1, **given).past_key_values
    read.batch_repeat_interleave(how.decode.num_beams)
    return {"past_key_values": read}
