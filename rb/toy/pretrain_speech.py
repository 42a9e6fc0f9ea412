"""The last stage of the toy OPT: what it speaks is refreshed, while ViT and Q-Former stand still.

The bridge and its settling train on captions of images alone, and OPT forgets how people speak of rooms. Here it goes on with those captions
through the frozen Q-Former, with the texts of the language stage, and with what people say of a solid in a room, told by a prompt of words
(rb/toy/told_rooms.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rb.core import seeding
from rb.core.text import TextProcessor
from rb.toy.pretrain_bridge import BATCH, NUM_QUERIES, Bridge, Texts, encode_views, llm_caption_loss, spoken_loss
from rb.toy.pretrain_data import batches, make_views, train_steps
from rb.toy.pretrain_language import documents, next_word_loss
from rb.toy.pretrain_t5 import query_outputs
from rb.toy.tokenizers import opt_tokenizer, qformer_tokenizer
from rb.toy.told_rooms import tell_rooms

_TEXT_BATCH = 32
_RATE = 1e-3
_TEXT_TOKENS = 64


def train_speech(bridge: Bridge, steps: int, num_scenes: int) -> tuple[Bridge, dict[str, float]]:
    """The bridge with OPT and the projection trained on, in eval mode, and the last losses."""
    torch.manual_seed(6)
    blip2, tokenizer = bridge.blip2, opt_tokenizer()
    bridge.requires_grad_(requires_grad=False)
    trained = [blip2.language_model, blip2.language_projection]
    for module in trained:
        module.requires_grad_(requires_grad=True)
    views = make_views("pretrain", num_scenes)
    outputs, texts = query_outputs(blip2, encode_views(blip2, views)), Texts.of(views)
    plain = tokenizer(
        documents(num_scenes), padding=True, truncation=True, max_length=_TEXT_TOKENS, return_tensors="pt"
    )
    told = tell_rooms(num_scenes // 4, NUM_QUERIES, tokenizer)
    processor = TextProcessor(qformer_tokenizer(), tokenizer, "decoder", max_text_tokens=32)
    spoken_ids, spoken_mask = processor.encode_llm(told.texts)
    last: dict[str, float] = {}

    def room_loss(rows: Tensor, draw: torch.Generator) -> Tensor:
        prompt = told.prompt(blip2.language_model.get_input_embeddings(), rows, draw)
        return spoken_loss(blip2, prompt, spoken_ids[rows], spoken_mask[rows])

    def loss_of(step: int) -> Tensor:
        rng, draw = seeding.generator("toy speech", step), seeding.torch_generator("toy speech", step)
        rows = batches("speech", len(views), BATCH, step)
        captions = torch.tensor([texts.of_view[i][int(rng.integers(len(texts.of_view[i])))] for i in rows])
        seen = outputs[torch.from_numpy(rows)].float()
        lines = torch.from_numpy(batches("speech text", num_scenes, _TEXT_BATCH, step))
        terms = {
            "llm": llm_caption_loss(blip2, seen, texts.llm_ids[captions], texts.llm_mask[captions]),
            "text": next_word_loss(blip2.language_model, plain["input_ids"][lines], plain["attention_mask"][lines]),
            "room": room_loss(torch.from_numpy(batches("speech room", len(told.texts), BATCH, step)), draw),
        }
        if step == steps - 1:
            last.update({name: float(term.detach()) for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    train_steps("speech", [([p for module in trained for p in module.parameters()], _RATE)], steps, loss_of)
    return bridge.eval(), last
