"""Pre-training of the toy OPT: documents that list the facts of a scene and then captions that follow from them.

It learns the language of captions, fact lists and region expressions; images come later, with the Q-Former.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import OPTConfig, OPTForCausalLM

from rb.core import seeding
from rb.toy.pretraining.data import SEED, batches, fact_list, train_steps
from rb.toy.pretraining.tokenizers import image_token_id, opt_tokenizer
from rb.toy.world.rooms import descriptions, make_room
from rb.toy.world.scenes import cloud_captions, make_cloud, make_scene, region_expressions, whole_captions

BATCH = 48
MAX_LENGTH = 96


def language_config() -> OPTConfig:
    """Sizes of the toy OPT; a text begins with ``</s>`` and, in BLIP-2, ends with a line break."""
    tokenizer = opt_tokenizer()
    line_break = tokenizer.convert_tokens_to_ids("\n")
    return OPTConfig(
        vocab_size=image_token_id(tokenizer) + 1,
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=256,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=line_break,
        tie_word_embeddings=True,
    )


def documents(count: int) -> list[str]:
    """Texts: facts of a scene and a caption or region expressions of it; captions alone; captions of clouds; descriptions in rooms."""
    texts = []
    for i in tqdm(range(count), desc="toy documents", file=sys.stderr):
        kind = seeding.uniform("toy document", i)
        if kind < 0.1:
            texts.append(cloud_captions(make_cloud(SEED, "pretrain", i, 64), 1)[0] + "\n")
            continue
        if kind < 0.25:
            room = make_room(SEED, "pretrain", i, 64)
            sentences = [text for item in room.objects for text in descriptions(room, item, 1)]
            texts.append("\n".join(sentences[:3]) + "\n")
            continue
        scene = make_scene(SEED, "pretrain", i)
        caption = whole_captions(scene, 1)[0]
        if kind < 0.55:
            texts.append(f"{fact_list(scene)}\n{caption}\n")
        elif kind < 0.7:
            texts.append(caption + "\n")
        else:
            item = scene.objects[i % len(scene.objects)]
            sentences = region_expressions(scene, item, 1)
            texts.append((f"{fact_list(scene)}\n" if kind < 0.83 else "") + "\n".join(sentences or [caption]) + "\n")
    return texts


def next_word_loss(model: OPTForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy per token after the first: texts [B, T] padded right, cut here to the longest."""
    length = int(mask.sum(1).max())
    own, seen = ids[:, :length], mask[:, :length]
    logits = model(input_ids=own, attention_mask=seen, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten(), reduction="none")
    return (losses * seen[:, 1:].flatten()).sum() / seen[:, 1:].sum()


def train_language(steps: int, num_documents: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """OPT's state dict and its loss per token on the last documents, which it never saw."""
    torch.manual_seed(2)
    model, tokenizer = OPTForCausalLM(language_config()), opt_tokenizer()
    encoded = tokenizer(
        documents(num_documents), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    held_out = 200

    def loss_on(rows: Tensor) -> Tensor:
        return next_word_loss(model, ids[rows], mask[rows])

    def loss_of(step: int) -> Tensor:
        return loss_on(torch.from_numpy(batches("language", num_documents - held_out, BATCH, step)))

    train_steps("language model", [(list(model.parameters()), 2e-3)], steps, loss_of)
    with torch.no_grad():
        loss = float(loss_on(torch.arange(num_documents - held_out, num_documents)))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, {"held_out_loss": loss}
