"""Toy rooms told by words instead of seen: what an LLM must hear in its soft prompt before it can speak of places in a room.

A soft prompt lives among the word embeddings. The bridge teaches the LLM to hear what captions of images say; "front", "back of the cone"
and the like it hears here. A position of the prompt holds one thing that is true of a solid, the sum of its words' embeddings, so that "back" of
what stays together. Used by the last stages of both toy LLMs. Shapes: B batch, Q query tokens, W words of a phrase, L LLM width.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rb.core import seeding
from rb.core.text import clean_caption
from rb.toy.pretrain_data import SEED
from rb.toy.room_truth import clause_margin, parse_description
from rb.toy.rooms import ToyRoom, descriptions, make_room, room_truth, sayable_clauses
from rb.toy.world import ToyObject

_SILENT = {"in", "on", "the"}
_MOST_WORDS = 4  # "back of small cone"


@dataclass(frozen=True)
class ToldRooms:
    """n solids: what is true of each, as phrases of words, and a description.

    Attributes:
        words: [n, Q, W] int64, ids of words, -1 where there is none; the first ``count`` phrases of each are there.
        count: [n] int64.
        texts: n cleaned descriptions.
    """

    words: Tensor
    count: Tensor
    texts: list[str]

    def prompt(self, embedding: nn.Embedding, rows: Tensor, draw: torch.Generator) -> Tensor:
        """Soft prompts [B, Q, L] of some solids: every phrase at least once, in a drawn order, each as loud as is drawn."""
        queries = self.words.shape[1]
        order = torch.stack([torch.randperm(queries, generator=draw) % int(n) for n in self.count[rows]])  # [B, Q]
        ids = self.words[rows[:, None], order]  # [B, Q, W]
        said = (ids >= 0).unsqueeze(-1)
        phrases = (embedding(ids.clamp(min=0)) * said).sum(2) / said.sum(2).sqrt()
        return phrases * torch.empty(*order.shape, 1).uniform_(0.3, 2.0, generator=draw)


def phrases_of(room: ToyRoom, item: ToyObject, said: str, most: int) -> list[str]:
    """Up to ``most`` things that hold of a solid: ``small``, ``cube``, ``left``, ``back of small cone``; those that ``said`` names first."""
    truth = room_truth(room)
    own = next(entry for entry in truth["objects"] if entry["object_id"] == item.object_id)
    description = parse_description(said)
    named = list(description.clauses) if description else []
    held = [clause for clause in sayable_clauses(truth, item.object_id) if clause_margin(clause, own, truth) >= 0]
    rest = [clause for clause in held if clause not in named]
    rest = [rest[i] for i in seeding.generator("told", room.room_id, item.object_id).permutation(len(rest))]
    clauses = [" ".join(w for w in str(clause).split() if w not in _SILENT) for clause in (*named, *rest)]
    return [item.size, item.shape, *clauses][:most]


def tell_rooms(count: int, queries: int, tokenizer: PreTrainedTokenizerBase) -> ToldRooms:
    """Every solid of ``count`` rooms that can be pointed out by words."""
    told = []
    for i in tqdm(range(count), desc="toy rooms, told", file=sys.stderr):
        room = make_room(SEED, "speech", i, 64)
        for item in room.objects:
            told += [(phrases_of(room, item, text, queries), text) for text in descriptions(room, item, 1)]
    words = torch.full((len(told), queries, _MOST_WORDS), -1)
    for n, (phrases, _) in enumerate(told):
        for q, phrase in enumerate(phrases):
            ids = tokenizer.convert_tokens_to_ids(phrase.split())
            words[n, q, : len(ids)] = torch.tensor(ids)
    return ToldRooms(words, torch.tensor([len(p) for p, _ in told]), [clean_caption(text) for _, text in told])
