"""The last stage of the toy OPT: OPT and its projection train on, ViT and Q-Former are frozen.

The bridge and its settling train on captions of images alone, and OPT forgets descriptions of rooms. This stage continues with those captions
through the frozen Q-Former, with the texts of the language stage, and with descriptions of a solid in a room given a prompt of word embeddings: a
soft prompt has the size of word embeddings, and OPT must understand "front" there as it does "left", which the bridge stage has taught it.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from rb.core import seeding
from rb.core.text import TextProcessor, clean_caption
from rb.toy.pretraining.bridge import BATCH, NUM_QUERIES, Bridge, Texts, encode_views, llm_caption_loss, spoken_loss
from rb.toy.pretraining.data import SEED, batches, make_views, train_steps
from rb.toy.pretraining.language import documents, next_word_loss
from rb.toy.pretraining.t5 import query_outputs
from rb.toy.pretraining.tokenizers import opt_tokenizer, qformer_tokenizer
from rb.toy.world.room_truth import SIDES, WALLS, Clause, clause_margin
from rb.toy.world.rooms import ToyRoom, descriptions, make_room, room_truth
from rb.toy.world.scenes import ToyObject

_TEXT_BATCH = 32
_RATE = 1e-3
_TEXT_TOKENS = 64


def room_words(room: ToyRoom, item: ToyObject) -> list[str]:
    """``small cube left front corner wall``: one solid with the words that are true of its place."""
    truth = room_truth(room)
    own = next(entry for entry in truth["objects"] if entry["object_id"] == item.object_id)
    words = [kind.split()[-1] for kind in (*SIDES, *WALLS) if clause_margin(Clause(kind), own, truth) >= 0]
    return [item.size, item.shape, *words]


def described_rooms(count: int) -> list[tuple[list[str], str]]:
    """Solids of ``count`` rooms: their words, and a description of each."""
    described = []
    for i in tqdm(range(count), desc="toy rooms (speech)", file=sys.stderr):
        room = make_room(SEED, "speech", i, 64)
        for item in room.objects:
            described += [(room_words(room, item), clean_caption(text)) for text in descriptions(room, item, 1)]
    return described


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
    described = described_rooms(num_scenes // 4)
    words = [torch.tensor(tokenizer.convert_tokens_to_ids(prompt)) for prompt, _ in described]
    processor = TextProcessor(qformer_tokenizer(), tokenizer, "decoder", max_text_tokens=32)
    spoken_ids, spoken_mask = processor.encode_llm([text for _, text in described])
    last: dict[str, float] = {}

    def room_loss(rows: Tensor, draw: torch.Generator) -> Tensor:
        heard = torch.stack(
            [words[i][torch.randperm(NUM_QUERIES, generator=draw) % len(words[i])] for i in rows.tolist()]
        )
        prompt = blip2.language_model.get_input_embeddings()(heard)  # [B, Q, L]
        loudness = torch.empty(*heard.shape, 1).uniform_(0.3, 2.0, generator=draw)
        return spoken_loss(blip2, prompt * loudness, spoken_ids[rows], spoken_mask[rows])

    def loss_of(step: int) -> Tensor:
        rng, draw = seeding.generator("toy speech", step), seeding.torch_generator("toy speech", step)
        rows = batches("speech", len(views), BATCH, step)
        captions = torch.tensor([texts.of_view[i][int(rng.integers(len(texts.of_view[i])))] for i in rows])
        seen = outputs[torch.from_numpy(rows)].float()
        lines = torch.from_numpy(batches("speech text", num_scenes, _TEXT_BATCH, step))
        terms = {
            "llm": llm_caption_loss(blip2, seen, texts.llm_ids[captions], texts.llm_mask[captions]),
            "text": next_word_loss(blip2.language_model, plain["input_ids"][lines], plain["attention_mask"][lines]),
            "room": room_loss(torch.from_numpy(batches("speech room", len(described), BATCH, step)), draw),
        }
        if step == steps - 1:
            last.update({name: float(term.detach()) for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    train_steps("speech", [([p for module in trained for p in module.parameters()], _RATE)], steps, loss_of)
    return bridge.eval(), last
