"""Pre-training of the toy FlanT5, in two stages: the language alone, then captions of what the OPT foundation's frozen ViT and Q-Former see.

A T5 as flan's files describe it (gated GELU, its own head). The library ties head and embedding of every T5 that it builds, so
``new_t5`` unties them before a weight is loaded. Shapes: B micro-batch, Q query tokens, Tp prompt tokens, T text tokens, D Q-Former width.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Blip2Config, Blip2ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from rb.core import seeding
from rb.core.modality import IMAGE, POINT_CLOUD, modality_spec
from rb.toy.pretraining.bridge import WIDTH, Bridge, blip2_config, encode_views
from rb.toy.pretraining.data import batches, make_views, train_steps
from rb.toy.pretraining.language import documents
from rb.toy.pretraining.tokenizers import image_token_id, t5_tokenizer
from rb.toy.world.vocabulary import COLOURS, FACTS

BATCH = 64
_HELD_OUT = 200
_FACTS_SHARE = 0.3
_LANGUAGE = "language_model."
_PROJECTION = "language_projection."
Encoded = tuple[Tensor, Tensor]  # ids and mask, [B, T] int64 each


def t5_config() -> T5Config:
    """Sizes of the toy T5; ids as in flan: padding 0 starts the decoder, ``</s>`` 1 ends every text."""
    tokenizer = t5_tokenizer()
    # The library's declared arguments leave these out; it takes them all the same.
    more: dict[str, Any] = {
        "dense_act_fn": "gelu",  # as the hub's BLIP-2 files, after LAVIS
        "decoder_start_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return T5Config(
        vocab_size=image_token_id(tokenizer) + 1,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,  # the library's cache expects as many as above
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def t5_blip2_config() -> Blip2Config:
    """The toy BLIP-2 with T5 in OPT's place; the rest is the OPT foundation's."""
    tree = blip2_config(text_input=False).to_dict()
    tree["text_config"] = t5_config().to_dict() | {"tie_word_embeddings": False}
    tree["image_token_index"] = tree["image_token_id"] = image_token_id(t5_tokenizer())
    return Blip2Config(**{k: v for k, v in tree.items() if k not in ("use_decoder_only_language_model", "model_type")})


def new_t5() -> T5ForConditionalGeneration:
    """A fresh T5 whose head is its own."""
    model = T5ForConditionalGeneration(t5_config())
    untie(model)
    assert model.config.scale_decoder_outputs is False  # flan's logits are not scaled
    return model


def untie(model: T5ForConditionalGeneration) -> None:
    """Give the head its own matrix; the library has tied it to the embedding."""
    weight = torch.empty_like(model.shared.weight)
    model.lm_head.weight = nn.Parameter(nn.init.normal_(weight, std=model.config.d_model**-0.5))


def t5_blip2(bridge: Bridge, settled: dict[str, Tensor]) -> Blip2ForConditionalGeneration:
    """The settled T5 and its projection behind the bridge's ViT and Q-Former."""
    model = Blip2ForConditionalGeneration(t5_blip2_config())
    untie(model.language_model)
    places = set(model.state_dict())
    seen = {k: v for k, v in bridge.blip2.state_dict().items() if k in places and not k.startswith("language_")}
    model.load_state_dict(seen | settled)
    return model.eval()


def train_t5_language(steps: int, num_documents: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """T5's state dict and its loss per token on the last documents: from facts, or from a prefix alone, to the texts about a scene."""
    torch.manual_seed(5)
    model = new_t5()
    pairs = [_source_and_target(text, i) for i, text in enumerate(documents(num_documents))]
    sources, targets = (_encode([pair[k] for pair in pairs]) for k in (0, 1))

    def loss_on(rows: Tensor) -> Tensor:
        (source, source_mask), target = _rows(sources, rows), _rows(targets, rows)
        return _caption_loss(model, model.shared(source), source_mask, target)

    def loss_of(step: int) -> Tensor:
        return loss_on(torch.from_numpy(batches("t5 language", num_documents - _HELD_OUT, BATCH, step)))

    train_steps("T5", [(list(model.parameters()), 2e-3)], steps, loss_of)
    with torch.no_grad():
        loss = float(loss_on(torch.arange(num_documents - _HELD_OUT, num_documents)))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, {"held_out_loss": loss}


def settle_t5(
    bridge: Bridge, language: dict[str, Tensor], steps: int, num_scenes: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """T5 and its projection, under BLIP-2's names, trained on captions of scenes through the frozen ViT and Q-Former.

    The prefix says what is asked for: the paper's gives captions, ``facts`` the list of what lies where. So the lists, which teach the
    projection places, cannot come out where a caption is wanted, as they do with OPT.
    """
    torch.manual_seed(6)
    model, projection = new_t5(), nn.Linear(WIDTH, t5_config().d_model)
    model.load_state_dict(language)
    views = make_views("pretrain", num_scenes)
    outputs = query_outputs(bridge.blip2.requires_grad_(requires_grad=False).eval(), encode_views(bridge.blip2, views))
    captions = [_encode(list(texts)) for texts in zip(*(view.captions[:3] for view in views), strict=True)]
    facts = _encode([view.facts for view in views])
    listed = torch.tensor([bool(view.facts) for view in views])
    prompts = {text: _encode([text])[0] for text in (modality_spec(IMAGE).t5_prefix, FACTS)}
    last: dict[str, float] = {}

    def loss_on(rows: Tensor, target: Encoded, prompt: str) -> Tensor:
        asked = model.shared(prompts[prompt]).expand(len(rows), -1, -1)
        context = torch.cat([projection(outputs[rows].float()), asked], dim=1)  # [B, Q + Tp, L]
        return _caption_loss(model, context, None, _rows(target, rows))

    def loss_of(step: int) -> Tensor:
        rows = torch.from_numpy(batches("t5 settle", len(views), BATCH, step))
        factual = rows[listed[rows]][: round(_FACTS_SHARE * BATCH)]
        spoken = captions[int(seeding.generator("toy t5 settle", step).integers(len(captions)))]
        llm = loss_on(rows, spoken, modality_spec(IMAGE).t5_prefix)
        if step == steps - 1:
            last["llm"] = float(llm.detach())
        return llm + _FACTS_SHARE * loss_on(factual, facts, FACTS) if len(factual) else llm

    train_steps(
        "T5 captions", [(list(projection.parameters()), 1.5e-3), (list(model.parameters()), 1e-3)], steps, loss_of
    )
    weights = {f"{_LANGUAGE}{name}": value for name, value in model.state_dict().items()}
    weights |= {f"{_PROJECTION}{name}": value for name, value in projection.state_dict().items()}
    return {name: value.detach().clone() for name, value in weights.items()}, last


def _source_and_target(document: str, index: int) -> tuple[str, str]:
    """A document as (what the encoder reads, what the decoder writes): its facts, or else a prefix of the paper's or nothing."""
    first, *rest = document.strip().split("\n")
    if rest and first.startswith(FACTS):
        return first, rest[0]
    prefix = modality_spec(IMAGE if set(COLOURS) & set(first.split()) else POINT_CLOUD).t5_prefix
    return prefix if seeding.uniform("toy t5 prefix", index) < 0.7 else "", first


def _encode(texts: list[str]) -> Encoded:
    """Texts with ``</s>`` behind, padded right."""
    encoded = t5_tokenizer()(texts, padding=True, truncation=True, max_length=96, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def _rows(encoded: Encoded, rows: Tensor) -> Encoded:
    """Some rows, as short as their longest."""
    ids, mask = (part[rows] for part in encoded)
    length = int(mask.sum(1).max())
    return ids[:, :length], mask[:, :length]


def _caption_loss(
    model: T5ForConditionalGeneration, context: Tensor, context_mask: Tensor | None, target: Encoded
) -> Tensor:
    """Mean cross-entropy per target token; context [B, Q + Tp, L], target [B, T]."""
    ids, mask = target
    labels = ids.masked_fill(mask == 0, -100)
    start = torch.cat([torch.full_like(ids[:, :1], model.config.decoder_start_token_id), ids[:, :-1]], dim=1)
    logits = model(
        inputs_embeds=context, attention_mask=context_mask, decoder_input_ids=start, use_cache=False
    ).logits  # [B, T, vocabulary]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@torch.no_grad()
def query_outputs(blip2: Blip2ForConditionalGeneration, embeds: Tensor) -> Tensor:
    """Query outputs [views, Q, D] in half precision of image embeddings [views, P, V]: frozen here, so once is enough."""
    chunks = tqdm(embeds.split(256), desc="query outputs", file=sys.stderr, delay=5)
    return torch.cat(
        [
            blip2.qformer(
                query_embeds=blip2.query_tokens.expand(len(chunk), -1, -1), encoder_hidden_states=chunk.float()
            ).last_hidden_state.half()
            for chunk in chunks
        ]
    )
