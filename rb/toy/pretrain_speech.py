"""The last stage of the toy OPT: what it speaks is refreshed, while ViT and Q-Former stand still.

The bridge and its settling train on captions of images alone, and OPT forgets how people speak of rooms. Here it goes on with those captions
through the frozen Q-Former, and with text: facts of a solid in a room, and what follows from them, as the language stage does for images.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from rb.core import seeding
from rb.core.text import clean_caption
from rb.model.losses import token_loss
from rb.toy.pretrain_bridge import BATCH, Bridge, Texts, encode_views, llm_caption_loss
from rb.toy.pretrain_data import SEED, batches, make_views, train_steps
from rb.toy.pretrain_language import documents
from rb.toy.pretrain_t5 import query_outputs
from rb.toy.room_truth import SIDES, WALLS, Clause, clause_margin
from rb.toy.rooms import ToyRoom, descriptions, make_room, room_truth
from rb.toy.tokenizers import opt_tokenizer
from rb.toy.vocabulary import FACTS
from rb.toy.world import ToyObject

_TEXT_BATCH = 48
_RATE = 1e-3
_TEXT_TOKENS = 64


def room_facts(room: ToyRoom, item: ToyObject) -> str:
    """``facts small cube left front corner wall``: one solid with the words that hold of its place."""
    truth = room_truth(room)
    own = next(entry for entry in truth["objects"] if entry["object_id"] == item.object_id)
    words = [kind.split()[-1] for kind in (*SIDES, *WALLS) if clause_margin(Clause(kind), own, truth) >= 0]
    return " ".join([FACTS, item.size, item.shape, *(words or ["middle"])])


def speech_documents(count: int) -> list[str]:
    """Texts: half of them a solid's facts and two descriptions of it, half those of the language stage."""
    rooms = []
    for i in tqdm(range(count // 2), desc="toy room documents", file=sys.stderr):
        room = make_room(SEED, "speech", i, 64)
        item = room.objects[i % len(room.objects)]
        said = [clean_caption(text) for text in descriptions(room, item, 2)]
        if said:
            rooms.append("\n".join([room_facts(room, item), *said]) + "\n")
    return rooms + documents(count - len(rooms))


def train_speech(bridge: Bridge, steps: int, num_scenes: int) -> tuple[Bridge, dict[str, float]]:
    """The bridge with OPT and the projection trained on, in eval mode, and the last losses."""
    torch.manual_seed(6)
    blip2 = bridge.blip2
    bridge.requires_grad_(requires_grad=False)
    trained = [blip2.language_model, blip2.language_projection]
    for module in trained:
        module.requires_grad_(requires_grad=True)
    views = make_views("pretrain", num_scenes)
    outputs = query_outputs(blip2, encode_views(blip2, views))
    tokenizer = opt_tokenizer()
    texts = Texts.of(views)
    encoded = tokenizer(
        speech_documents(num_scenes), padding=True, truncation=True, max_length=_TEXT_TOKENS, return_tensors="pt"
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    last: dict[str, float] = {}

    def text_loss(rows: Tensor) -> Tensor:
        length = int(mask[rows].sum(1).max())
        own, seen = ids[rows, :length], mask[rows, :length]
        logits = blip2.language_model(input_ids=own, attention_mask=seen, use_cache=False).logits[:, :-1]
        told = seen[:, 1:].float()
        return token_loss(logits, own[:, 1:], told, told.sum(), 1)

    def loss_of(step: int) -> Tensor:
        rng = seeding.generator("toy speech", step)
        rows = batches("speech", len(views), BATCH, step)
        told = torch.tensor([texts.of_view[i][int(rng.integers(len(texts.of_view[i])))] for i in rows])
        terms = {
            "llm": llm_caption_loss(
                blip2, outputs[torch.from_numpy(rows)].float(), texts.llm_ids[told], texts.llm_mask[told]
            ),
            "text": text_loss(torch.from_numpy(batches("speech text", len(ids), _TEXT_BATCH, step))),
        }
        if step == steps - 1:
            last.update({name: float(term.detach()) for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    train_steps("speech", [([p for module in trained for p in module.parameters()], _RATE)], steps, loss_of)
    return bridge.eval(), last
