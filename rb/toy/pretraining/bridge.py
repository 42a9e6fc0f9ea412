"""Pre-training of the toy Q-Former, its text branch and the projection to the LLM, in one stage where BLIP-2 has two.

Losses: BLIP-2's ITC, ITM and ITG (the project's own functions), the LLM's caption loss, and a grid loss that makes query k predict what lies
in cell k of a 4 x 4 grid (head thrown away): it spreads the queries over places. OPT trains too, and is frozen afterwards.

A short second stage ("settle") continues with captions alone. After the first, three texts in ten are fact lists; they have little entropy, so
beam search prefers them to any caption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig

from rb.core import seeding
from rb.core.text import TextProcessor
from rb.model import losses
from rb.model.blip2_config import llm_config_of, qformer_config_of
from rb.model.qformer import TextBranch, joint_pass, query_and_text_pass
from rb.toy.pretraining.data import View, batches, cell_targets, make_views, to_pixels, train_steps
from rb.toy.pretraining.language import language_config
from rb.toy.pretraining.tokenizers import image_token_id, opt_tokenizer, qformer_tokenizer
from rb.toy.pretraining.vision import vision_config
from rb.toy.world.vocabulary import COLOURS, SHAPES, SIZES

BATCH = 64
NUM_QUERIES = 16
WIDTH = 128
ITC_WIDTH = 64
TEXT_TOKENS = 18  # longest caption with [CLS] and [SEP]
_FACTS_SHARE = 0.3
_GRID_WEIGHT = 0.5
_QUERY_STD = 0.5  # zero by default, which would make all queries one
_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)


def blip2_config(text_input: bool) -> Blip2Config:
    """The toy BLIP-2; ``text_input`` gives the Q-Former its text feed-forward layers, which generation checkpoints lack."""
    qformer = Blip2QFormerConfig(
        vocab_size=len(qformer_tokenizer()),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
        cross_attention_frequency=1,
        encoder_hidden_size=128,
        use_qformer_text_input=text_input,
    )
    return Blip2Config(
        vision_config=vision_config().to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=language_config().to_dict(),
        num_query_tokens=NUM_QUERIES,
        image_text_hidden_size=ITC_WIDTH,
        image_token_index=image_token_id(opt_tokenizer()),
    )


class Bridge(nn.Module):
    """Everything that this stage trains or reads: a BLIP-2, the text branch and the three heads."""

    def __init__(self) -> None:
        super().__init__()
        config = blip2_config(text_input=True)
        self.blip2 = Blip2ForConditionalGeneration(config)
        nn.init.normal_(self.blip2.query_tokens, std=_QUERY_STD)
        self.text_branch = TextBranch(qformer_config_of(config), qformer_tokenizer().bos_token_id)
        self.vision_proj = nn.Linear(WIDTH, ITC_WIDTH)
        self.text_proj = nn.Linear(WIDTH, ITC_WIDTH)
        self.itm_head = nn.Linear(WIDTH, 2)
        self.temp = nn.Parameter(torch.full((1,), 0.07))


@dataclass(frozen=True)
class Texts:
    """Every sentence of the bank, tokenised once; view i owns rows ``of_view[i]``, its fact list is row ``facts[i]`` (-1 for crops)."""

    text_ids: Tensor
    text_mask: Tensor
    llm_ids: Tensor
    llm_mask: Tensor
    caption_keys: Tensor
    of_view: list[range]
    facts: list[int]

    @classmethod
    def of(cls, views: list[View]) -> Texts:
        """All sentences of the views."""
        processor = TextProcessor(qformer_tokenizer(), opt_tokenizer(), "decoder", max_text_tokens=64)
        sentences: list[str] = []
        of_view, facts = [], []
        for view in views:
            of_view.append(range(len(sentences), len(sentences) + len(view.captions)))
            sentences += view.captions
            facts.append(len(sentences) if view.facts else -1)
            sentences += [view.facts] if view.facts else []
        text_ids, text_mask = processor.encode_qformer(sentences)
        llm_ids, llm_mask = processor.encode_llm(sentences)
        keys = torch.tensor([seeding.hash_key(s) for s in sentences])
        return cls(text_ids[:, :TEXT_TOKENS], text_mask[:, :TEXT_TOKENS], llm_ids, llm_mask, keys, of_view, facts)


def new_bridge(vision: dict[str, Tensor], language: dict[str, Tensor]) -> Bridge:
    """A bridge between a trained ViT and a trained OPT."""
    torch.manual_seed(3)
    bridge = Bridge()
    bridge.blip2.vision_model.load_state_dict(vision)
    missing = bridge.blip2.language_model.load_state_dict(language, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]), missing
    assert not missing.unexpected_keys, missing
    return bridge


def trained_bridge(weights: dict[str, Tensor]) -> Bridge:
    """The bridge that a finished stage has kept; OPT's output matrix is tied and not in the file."""
    bridge = Bridge()
    loaded = bridge.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys, loaded
    assert all(key.endswith("lm_head.weight") for key in loaded.missing_keys), loaded
    return bridge


def train_bridge(bridge: Bridge, steps: int, num_scenes: int, settle: bool = False) -> tuple[Bridge, dict[str, float]]:
    """The whole toy BLIP-2 with its text branch, in eval mode, and the last training losses.

    ``settle``: captions only, no grid loss, a third of the rate.
    """
    torch.manual_seed(4)
    grid_head = nn.Linear(WIDTH, sum(_CLASSES))
    facts_share, scale = (0.0, 1 / 3) if settle else (_FACTS_SHARE, 1.0)
    bridge.blip2.vision_model.requires_grad_(requires_grad=False)
    views = make_views("pretrain", num_scenes)
    features = encode_views(bridge.blip2, views)
    texts, cells = Texts.of(views), torch.from_numpy(np.stack([cell_targets(v) for v in views]))
    last: dict[str, float] = {}

    def loss_of(step: int) -> Tensor:
        rng = seeding.generator("toy bridge", step, settle)
        rows = batches("settle" if settle else "bridge", len(views), BATCH, step)
        captions = torch.tensor([texts.of_view[i][int(rng.integers(len(texts.of_view[i])))] for i in rows])
        chosen = torch.tensor(
            [
                texts.facts[i] if texts.facts[i] >= 0 and rng.random() < facts_share else int(c)
                for i, c in zip(rows, captions, strict=True)
            ]
        )
        keys = (torch.from_numpy(rows), texts.caption_keys[captions])
        uniforms = torch.from_numpy(rng.random((len(rows), 2))).float()
        terms, query_output = _text_losses(
            bridge, features[rows].float(), texts.text_ids[captions], texts.text_mask[captions], keys, uniforms
        )
        terms["llm"] = llm_caption_loss(bridge.blip2, query_output, texts.llm_ids[chosen], texts.llm_mask[chosen])
        if not settle:
            terms["grid"] = _GRID_WEIGHT * _grid_loss(grid_head(query_output), cells[rows])
        if step == steps - 1:
            last.update({name: float(term.detach()) for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    language_weights = list(bridge.blip2.language_model.parameters())
    ours = {id(p) for p in language_weights} | {id(p) for p in bridge.blip2.vision_model.parameters()}
    rest = [p for p in (*bridge.parameters(), *grid_head.parameters()) if id(p) not in ours]
    train_steps("Q-Former", [(rest, 1.5e-3 * scale), (language_weights, 5e-4 * scale)], steps, loss_of)
    return bridge.eval(), last


@torch.no_grad()
def encode_views(blip2: Blip2ForConditionalGeneration, views: list[View]) -> Tensor:
    """Image embeddings [views, P, V] in half precision: the encoder is frozen here, so once is enough."""
    chunks = [views[i : i + 128] for i in range(0, len(views), 128)]
    return torch.cat(
        [blip2.vision_model(to_pixels(v.image for v in chunk)).last_hidden_state.half() for chunk in chunks]
    )


def _text_losses(
    bridge: Bridge, embeds: Tensor, ids: Tensor, mask: Tensor, keys: tuple[Tensor, Tensor], uniforms: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """ITC, ITM and ITG of a batch on one process, and the query output [B, Q, D]."""
    qformer, text = bridge.blip2.qformer, bridge.text_branch
    queries = bridge.blip2.query_tokens.expand(len(ids), -1, -1)
    passed = query_and_text_pass(qformer, text, queries, embeds, ids, mask)
    both = torch.stack(keys, dim=1)
    exclude = losses.duplicate_mask(both, both, row_offset=0)
    seen = F.normalize(bridge.vision_proj(passed.query_output), dim=-1)
    read = F.normalize(bridge.text_proj(passed.text_cls), dim=-1)
    sim_i2t, sim_t2i = losses.similarities(seen, read, seen, read, bridge.temp)
    itc = losses.itc_loss(sim_i2t, sim_t2i, 0, exclude)
    forbidden = losses.own_column(exclude, 0) | exclude
    images, images_valid = losses.choose_negatives(sim_t2i.detach(), forbidden, uniforms[:, 0])
    captions, captions_valid = losses.choose_negatives(sim_i2t.detach(), forbidden, uniforms[:, 1])
    # Half the batch is enough for ITM, which is the dearest pass.
    half = slice(0, len(ids) // 2)
    own_embeds, own_ids, own_mask = embeds[half], ids[half], mask[half]
    joint = joint_pass(
        qformer,
        text,
        bridge.blip2.query_tokens.expand(3 * len(own_ids), -1, -1),
        torch.cat([own_embeds, embeds[images[half]], own_embeds]),
        torch.cat([own_ids, own_ids, ids[captions[half]]]),
        torch.cat([own_mask, own_mask, mask[captions[half]]]),
    )
    weights = losses.itm_row_weights(images_valid[half], captions_valid[half])
    itm = losses.itm_loss(bridge.itm_head(joint).mean(1), weights, weights.sum(), 1)
    counted = mask[:, 1:].float()
    itg = losses.token_loss(text.logits(passed.itg_hidden[:, :-1]), ids[:, 1:], counted, counted.sum(), 1, 0.1)
    return {"itc": itc, "itm": itm, "itg": itg}, passed.query_output


def llm_caption_loss(blip2: Blip2ForConditionalGeneration, query_output: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The caption loss behind the projected query output [B, Q, D]."""
    return spoken_loss(blip2, blip2.language_projection(query_output), ids, mask)


def spoken_loss(blip2: Blip2ForConditionalGeneration, prompt: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """[soft prompt [B, Q, L] | </s>] then the caption and its line break, as rb.model.language builds it."""
    length = int(mask.sum(1).max())
    ids, mask = ids[:, :length], mask[:, :length]
    embed = blip2.language_model.get_input_embeddings()
    start = torch.full_like(ids[:, :1], llm_config_of(blip2.config).bos_token_id)
    inputs = torch.cat([prompt, embed(torch.cat([start, ids[:, :-1]], dim=1))], dim=1)
    seen = torch.cat([mask.new_ones(len(ids), prompt.shape[1] + 1), mask[:, :-1]], dim=1)
    logits = blip2.language_model(
        inputs_embeds=inputs, attention_mask=seen, use_cache=False, logits_to_keep=length
    ).logits
    return losses.token_loss(logits, ids, mask.float(), mask.sum(), 1)


def _grid_loss(logits: Tensor, cells: Tensor) -> Tensor:
    """Query k predicts cell k: logits [B, 16, classes], cells [B, 16, 3]."""
    total = logits.new_zeros(())
    for k, part in enumerate(logits.split(_CLASSES, dim=-1)):
        total = total + F.cross_entropy(part.flatten(0, 1), cells[..., k].flatten())
    return total
