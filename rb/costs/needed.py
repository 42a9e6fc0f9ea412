"""How many FLOPs a micro-batch needs, from the model's shapes and the batch's own lengths: the yardstick of what is executed.

Needed is every product of matrices and every attention of the published computation (BLIP-2, arXiv 2301.12597; RegionBLIP, arXiv 2308.02299,
eq. 2) without repetition and without padding:

- 2 FLOPs for each multiply-add of linear layers, convolutions and attention; norms, softmax, activations and FPS count nothing.
- Texts have their real lengths. Nothing is predicted from the last token of a text, so what writes the text (LLM, ITG) does not read it. Logits are
  needed only where a token is predicted.
- A source piece (an image or a cloud of the micro-batch) is encoded once, and becomes keys and values of the Q-Former once, for queries and ITM
  together. What the LLM reads before captions of one subject is read once. The Q-Former's queries count for each sample, since they stand
  beside its text. ITM sees 3 rows a sample; each chosen image is another one (its frozen features are given), each chosen text is as long as the row's own.
- Frozen weights have no gradient: a linear layer costs its forward pass once more for the gradient of its input, and nothing where that needs
  none (the encoders; keys and values of frozen image features). A weight that trains costs it once more again. LoRA of rank r on a layer of
  widths i, o: 2 r (i + o) a token, and twice that backward.
- Attention of n places over m: 4 n m d forward, twice that backward, no recomputation. A context (soft prompt, prompt) does not look at the text
  behind it; within a text all pairs count, as in the kernels.
- Nothing is skipped in a last layer, though some of its states are never read.

The encoders have no backward pass. Layers are read off the modules, so other widths and depths, Llama's kind of LLM and a second Q-Former need no
change here. Grouped-query attention and local windows are not modelled: such an LLM is counted as if it had full multi-head attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from rb.core.batch import Batch
from rb.model.blip2_config import llm_config_of, qformer_config_of, vision_config_of
from rb.model.encoded import ModalityModel
from rb.model.language import llm_kind
from rb.model.region_blip import RegionBLIP

# Layers of an encoder-decoder's decoder that read the encoder's output.
_OF_CONTEXT = re.compile(r"(EncDecAttention|encoder_attn)\.(k|v|k_proj|v_proj)$")
# Its first layers read frozen embeddings, which need no gradient.
_OF_EMBEDDINGS = re.compile(r"^(block\.0\.layer\.0\.SelfAttention|layers\.0\.self_attn)\.(q|k|v|q_proj|k_proj|v_proj)$")


@dataclass(frozen=True)
class _Lengths:
    """Of a micro-batch: B samples, S source pieces, O subjects, and the sums of lengths and products that the formulas need.

    Attributes:
        text: real tokens of each caption in the Q-Former. caption: in the LLM, end token included.
    """

    samples: int
    sources: int
    subjects: int
    text: list[int]
    caption: list[int]

    @classmethod
    def of(cls, batch: Batch) -> _Lengths:
        subjects = len(batch) if batch.subjects is None else len(batch.subjects)
        text, caption = (mask.sum(1).tolist() for mask in (batch.text_mask, batch.llm_mask))
        return cls(len(batch), len(batch.inputs), subjects, text, caption)


def needed(model: RegionBLIP, batch: Batch, pool: int) -> dict[str, float]:
    """FLOPs of a micro-batch, forward and backward, by part.

    Args:
        model: on any device.
        batch: whose masks have numbers.
        pool: samples that ITC contrasts with each other.
    """
    lengths, terms = _Lengths.of(batch), model.config.terms_of(batch.modality)
    of = model.of(batch.modality)
    parts = {"encoder": 0.0 if batch.are_features else _encoder(of, lengths.sources)}
    reads_text = any(name in terms for name in ("itc", "itm", "itg"))
    qformer = _QFormer(of, batch, lengths, pool)
    parts["qformer"] = qformer.own_pass(reads_text)
    for name in terms:
        parts[name] = qformer.heads(name) if name != "llm" else _llm(model, of, batch, lengths)
    return parts


def _linears(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All linear layers, those with LoRA as one."""
    for name, module in root.named_modules():
        inside = ".base_layer" in name or ".lora_" in name
        if not inside and isinstance(module, (LoraLayer, nn.Linear, Conv1D)):
            yield name, cast("nn.Module", module)


def _cost(layer: nn.Module, adapter: str | None, through: bool = True) -> float:
    """FLOPs for each token, forward and backward.

    Args:
        adapter: the active one; none: no backward pass at all.
        through: whether the gradient of the input is needed.
    """
    lora: Any = layer if isinstance(layer, LoraLayer) else None
    weight = (lora.get_base_layer() if lora else layer).get_parameter("weight")
    cost = 2.0 * weight.numel() * (1 + through + weight.requires_grad)
    if lora and adapter in lora.lora_A:
        a, b = (pair[adapter].weight.numel() for pair in (lora.lora_A, lora.lora_B))
        cost += 2.0 * (2 * a + 3 * b + through * a)
    return cost


def _forward(layers: Iterable[tuple[str, nn.Module]]) -> float:
    """FLOPs for each token of layers without a backward pass."""
    return sum(2.0 * layer.get_parameter("weight").numel() for _, layer in layers)


def _encoder(of: ModalityModel, sources: int) -> float:
    if not of.source.point_encoder:
        vision, vit = vision_config_of(of.blip2.config), of.blip2.vision_model
        patches = vit.embeddings.num_patches
        a_patch = 2 * vit.embeddings.patch_embedding.weight.numel()
        attention = 4 * (patches + 1) ** 2 * vision.hidden_size * vision.num_hidden_layers
        return sources * (patches * a_patch + (patches + 1) * _forward(_linears(vit.encoder)) + attention)
    encoder = of.points()
    config, net = encoder.config, encoder.patch_embed
    groups, points, tokens = config.num_group, config.num_group * config.group_size, 1 + config.num_group
    # The third layer reads [maximum of the group | point]: the first half of its columns once for a group.
    half = net.fc3.weight.numel() * 2 // 2
    a_point = sum(2 * layer.weight.numel() for layer in (net.fc1, net.fc2, net.fc4)) + half
    a_group = half + 2 * encoder.patch_proj.weight.numel() + _forward(_linears(encoder.pos_embed))
    blocks = _forward(_linears(encoder.blocks))
    attention = 4 * tokens**2 * config.trans_dim * config.depth
    return sources * (points * a_point + groups * a_group + tokens * blocks + attention)


class _QFormer:
    """The Q-Former's passes of a micro-batch, and the heads of the loss terms."""

    def __init__(self, of: ModalityModel, batch: Batch, lengths: _Lengths, pool: int) -> None:
        self.of, self.lengths, self.pool = of, lengths, pool
        config = qformer_config_of(of.blip2.config)
        self.width, self.layers = config.hidden_size, config.num_hidden_layers
        self.crossings = len(range(0, config.num_hidden_layers, config.cross_attention_frequency))
        self.queries = of.parts.query_tokens.shape[1]
        self.rows = len(batch)
        encoder = of.point_encoder if of.source.point_encoder else None
        self.patches = 1 + (encoder.config.num_group if encoder else of.blip2.vision_model.embeddings.num_patches)
        # Image features are frozen, what is projected from a cloud's is not.
        self.trains_keys = encoder is not None
        self.adapter = of.config.lora.adapter_of(of.spec.name)

    def _layers_of(self, pattern: str, through: bool = True) -> float:
        layers = _linears(self.of.qformer)
        return sum(_cost(layer, self.adapter, through) for name, layer in layers if re.search(pattern, name))

    def _pass(self, texts: int, attended: int) -> float:
        """Rows of a pass: linear layers of queries and of so many tokens of text, and self-attention over so many pairs of places."""
        both = self._layers_of(r"\.attention\.(attention|output)\.")
        queries = self.rows * self.queries
        total = both * (queries + texts)
        total += self._layers_of(r"_query\.") * queries
        total += self._layers_of(r"\.(intermediate|output)\.dense$(?<!attention\.output\.dense)") * texts
        return total + 12 * attended * self.width * self.layers

    def _crossing(self, rows: int) -> float:
        """Queries of some rows that look at their images."""
        linear = self._layers_of(r"crossattention\.(attention\.query|output\.dense)") * rows * self.queries
        kept = 12 if self.trains_keys else 10  # without the gradient of frozen keys
        return linear + kept * rows * self.queries * self.patches * self.width * self.crossings

    def _keys(self, images: int) -> float:
        """Keys and values of so many images, from frozen features."""
        cost = self._layers_of(r"crossattention\.attention\.(key|value)", self.trains_keys) * images * self.patches
        projection = self.of.point_projection if self.trains_keys else None
        return cost + (_cost(projection, None, through=False) * images * self.patches if projection else 0.0)

    def own_pass(self, reads_text: bool) -> float:
        """Queries, the text of ITC and the text of ITG, and the box that is added."""
        q, texts = self.queries, self.lengths.text
        attended, tokens = self.rows * q * q, 0
        if reads_text:
            tokens = sum(2 * t - 1 for t in texts)
            attended += sum(t * t + (t - 1) * (q + t - 1) for t in texts)
        pafe = self.of.parts.pafe
        box = sum(_cost(layer, None) for _, layer in _linears(pafe)) * self.rows if pafe else 0.0
        return self._pass(tokens, attended) + self._crossing(self.rows) + self._keys(self.lengths.sources) + box

    def heads(self, term: str) -> float:
        """Of a loss term, and the second pass of ITM."""
        parts, heads, q, rows = self.of.parts, self.of.heads, self.queries, self.rows
        if term == "itc":
            similarities = 12 * q * parts.vision_proj.out_features * self.pool  # in two directions
            return rows * (q * _cost(parts.vision_proj, None) + _cost(heads.text_proj, None) + similarities)
        if term == "reg":
            assert parts.box_head is not None
            return rows * _cost(parts.box_head.fc, None)
        if term == "itg":
            head, transform = self.of.text_branch.embeddings.word_embeddings, self.of.text_branch.transform.dense
            a_label = 2.0 * head.weight.numel() * (2 + head.weight.requires_grad) + _cost(transform, None)
            return sum(t - 1 for t in self.lengths.text) * a_label
        assert term == "itm", f"what {term} needs is not known"
        texts = self.lengths.text
        one = self._pass(sum(texts), sum((q + t) ** 2 for t in texts)) + self._crossing(rows)
        return 3 * one + self._keys(rows) + 3 * rows * q * _cost(heads.itm_head, None)


def _llm(model: RegionBLIP, of: ModalityModel, batch: Batch, lengths: _Lengths) -> float:
    """The LLM behind its projection."""
    llm, config = model.blip2.language_model, llm_config_of(model.blip2.config)
    adapter = model.config.lora.adapter_of(batch.modality)
    context = of.parts.query_tokens.shape[1] + batch.prompt_ids.shape[1]
    contexts, captions = lengths.subjects * context, sum(lengths.caption)
    head = llm.get_output_embeddings()
    total = of.parts.query_tokens.shape[1] * lengths.subjects * _cost(of.parts.language_projection, None)

    def linear(
        root: nn.Module, tokens: int, chosen: Callable[[str], bool] = lambda _: True, through: bool = True
    ) -> float:
        layers = [one for name, one in _linears(root) if one is not head and chosen(name)]
        return tokens * sum(_cost(one, adapter, through) for one in layers)

    depth, width = config.num_hidden_layers, config.hidden_size
    if llm_kind(llm) == "decoder":
        read = captions - lengths.samples  # the last token is read by nobody
        total += linear(llm, contexts + read)
        pairs = lengths.subjects * context**2 + sum((c - 1) * (context + c - 1) for c in lengths.caption)
        labels = lengths.subjects + read  # the first token of all captions of a subject is predicted at one place
        return total + 12 * pairs * width * depth + labels * _cost(head, adapter)
    inner = getattr(config, "d_kv", width // config.num_attention_heads) * config.num_attention_heads
    total += linear(llm.get_encoder(), contexts)
    decoder = llm.get_decoder()
    total += linear(decoder, contexts, lambda name: bool(_OF_CONTEXT.search(name)))
    written = (
        captions - lengths.samples + lengths.subjects
    )  # the start token before all captions of a subject is read once
    total += linear(decoder, written, lambda name: bool(_OF_EMBEDDINGS.search(name)), through=False)
    total += linear(decoder, written, lambda name: not (_OF_CONTEXT.search(name) or _OF_EMBEDDINGS.search(name)))
    total += 12 * inner * depth * lengths.subjects * context**2
    layers = getattr(config, "num_decoder_layers", None) or depth
    total += 12 * inner * layers * sum(c * c + c * context for c in lengths.caption)
    return total + written * _cost(head, adapter)
