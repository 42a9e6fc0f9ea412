"""A tiny foundation with random weights, written to disk in the real layouts, and batches for it. Made in a second, no downloads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    T5Config,
)

from rb.core import seeding
from rb.core.batch import Batch
from rb.core.config import FoundationConfig, ModelConfig
from rb.core.modality import modality_spec
from rb.core.text import TextProcessor
from rb.model.point_encoder import PointBert, PointBertConfig, to_original
from rb.model.qformer import TextBranch

WORDS = "a an the red blue green small big left right top bottom cube ball cone and of on in photo point cloud".split()  # noqa: SIM905
IMAGE_SIDE = 16
POINT_CONFIG = PointBertConfig(trans_dim=12, depth=1, num_heads=2, group_size=4, num_group=6, encoder_dims=8)


def write_foundation(folder: Path, seed: int = 0, llm: str = "opt") -> FoundationConfig:
    """A BLIP-2 (``opt``, ``t5`` as flan checkpoints are, or ``llama``), a stage-1 text branch and a Point-BERT under ``folder``."""
    torch.manual_seed(seed)
    blip2_dir, text_dir, point_dir = folder / f"blip2-{llm}", folder / "text_branch", folder / "point_bert"
    llm_tokenizer = _t5_tokenizer() if llm == "t5" else _opt_tokenizer()
    llm_tokenizer.save_pretrained(blip2_dir)
    text_dir.mkdir(parents=True)
    qformer_tokenizer = _bert_tokenizer(text_dir)
    config = _blip2_config(text_config(llm, len(llm_tokenizer)))
    blip2 = Blip2ForConditionalGeneration(config)
    if llm == "t5":  # the library ties what it builds; flan's head is its own
        blip2.language_model.lm_head.weight = torch.nn.Parameter(
            torch.empty(len(llm_tokenizer), config.text_config.d_model)
        )
    with torch.no_grad():
        for parameter in blip2.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    blip2.save_pretrained(blip2_dir)
    if llm == "t5":  # as the hub's files say it; the library would write true
        tree = json.loads((blip2_dir / "config.json").read_text())
        tree["text_config"] |= {"tie_word_embeddings": False}
        tree["text_config"].pop("scale_decoder_outputs", None)
        (blip2_dir / "config.json").write_text(json.dumps(tree))
    (blip2_dir / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "BlipImageProcessor",
                "do_resize": True,
                "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            }
        )
    )
    save_file(_stage1(config.qformer_config, len(qformer_tokenizer)), text_dir / "text_branch.safetensors")
    point_dir.mkdir()
    encoder = PointBert(POINT_CONFIG)
    save_file(
        {f"transformer_q.{k}": v.contiguous() for k, v in to_original(encoder.state_dict()).items()},
        point_dir / "point_bert.safetensors",
    )
    (point_dir / "config.json").write_text(json.dumps(POINT_CONFIG.__dict__))
    return FoundationConfig(str(blip2_dir), str(text_dir), str(point_dir))


def model_config(foundation: FoundationConfig, **changes: object) -> ModelConfig:
    """The tiny model's configuration."""
    values = {
        "foundation": foundation,
        "train_modalities": ("image_region", "point_cloud"),
        "max_text_tokens": 12,
        "num_points": 24,
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def make_batch(modality: str, text: TextProcessor, rows: range, seed: int = 0, num_points: int = 24) -> Batch:
    """Rows of an endless imaginary stream; row i is the same on any rank."""
    spec = modality_spec(modality)
    captions, inputs, boxes, uniforms = [], [], [], []
    for row in rows:
        generator = seeding.torch_generator("tiny", seed, modality, row)
        words = torch.randint(len(WORDS), (int(torch.randint(2, 6, (1,), generator=generator)),), generator=generator)
        captions.append(" ".join(WORDS[int(i)] for i in words))
        shape = (3, IMAGE_SIDE, IMAGE_SIDE) if spec.source == "image" else (num_points, 3)
        inputs.append(torch.randn(shape, generator=generator))
        low = torch.rand(max(spec.box_dim, 2) // 2, generator=generator) * 0.5
        boxes.append(torch.cat([low, low + 0.3]))
        uniforms.append([seeding.uniform("itm", seed, modality, row, d) for d in range(2)])
    text_ids, text_mask = text.encode_qformer(captions)
    llm_ids, llm_mask = text.encode_llm(captions)
    return Batch(
        modality=modality,
        ids=[f"{modality}-{row}" for row in rows],
        inputs=torch.stack(inputs),
        boxes=torch.stack(boxes) if spec.regional else None,
        text_ids=text_ids,
        text_mask=text_mask,
        llm_ids=llm_ids,
        llm_mask=llm_mask,
        prompt_ids=text.encode_prompt(modality),
        object_keys=torch.tensor([seeding.hash_key(modality, row) for row in rows]),
        caption_keys=torch.tensor([seeding.hash_key(caption) for caption in captions]),
        itm_uniforms=torch.tensor(uniforms, dtype=torch.float32),
        captions=captions,
        positions=list(rows),
    )


def text_config(llm: str, vocabulary: int) -> dict[str, object]:
    """The LLM's config as a checkpoint's file has it."""
    if llm == "t5":
        sizes = {"d_model": 20, "d_kv": 10, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        flan = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
        return T5Config(vocab_size=vocabulary, **sizes, **ids, **flan).to_dict() | {"tie_word_embeddings": False}
    ids = {"vocab_size": vocabulary, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    if llm == "llama":
        return LlamaConfig(intermediate_size=24, num_key_value_heads=1, **sizes, **ids).to_dict()
    if llm == "phi3":  # query, key and value in one layer, qkv_proj
        return Phi3Config(intermediate_size=24, num_key_value_heads=1, **sizes, **ids).to_dict()
    if llm == "gpt2":  # the same, c_attn, whose weight is stored transposed (Conv1D)
        return GPT2Config(n_embd=20, n_layer=2, n_head=2, n_positions=64, n_inner=24, **ids).to_dict()
    if llm == "bloom":  # the same, query_key_value
        return BloomConfig(hidden_size=20, n_layer=2, n_head=2, **ids).to_dict()
    if llm == "gemma2":  # bounds its attention logits, which sdpa cannot
        return Gemma2Config(intermediate_size=24, num_key_value_heads=1, head_dim=10, **sizes, **ids).to_dict()
    return OPTConfig(word_embed_proj_dim=20, ffn_dim=24, **sizes, **ids).to_dict()


def _blip2_config(text: dict[str, object]) -> Blip2Config:
    return Blip2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIDE,
            "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 24,
            "cross_attention_frequency": 2,
            "max_position_embeddings": 32,
        },
        text_config=text,
        num_query_tokens=4,
        image_text_hidden_size=8,
        image_token_index=None,
    )


def _opt_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "\n", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _bert_tokenizer(folder: Path) -> BertTokenizer:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    return tokenizer


def _stage1(config: Blip2QFormerConfig, vocabulary: int) -> dict[str, torch.Tensor]:
    config = Blip2QFormerConfig(**{**config.to_dict(), "vocab_size": vocabulary})
    branch = TextBranch(config, vocabulary - 1)
    width, wide = config.hidden_size, config.intermediate_size
    out = {
        "Qformer.bert.embeddings.word_embeddings.weight": branch.embeddings.word_embeddings.weight,
        "Qformer.bert.embeddings.position_embeddings.weight": branch.embeddings.position_embeddings.weight,
        "Qformer.cls.predictions.transform.dense.weight": branch.transform.dense.weight,
        "Qformer.cls.predictions.transform.dense.bias": branch.transform.dense.bias,
        "Qformer.cls.predictions.transform.LayerNorm.weight": branch.transform.LayerNorm.weight,
        "Qformer.cls.predictions.transform.LayerNorm.bias": branch.transform.LayerNorm.bias,
        "Qformer.cls.predictions.bias": branch.bias,
        "vision_proj.weight": torch.randn(8, width) * 0.3,
        "vision_proj.bias": torch.randn(8) * 0.1,
        "text_proj.weight": torch.randn(8, width) * 0.3,
        "text_proj.bias": torch.randn(8) * 0.1,
        "itm_head.weight": torch.randn(2, width) * 0.3,
        "itm_head.bias": torch.randn(2) * 0.1,
        "temp": torch.tensor(0.09),
    }
    for i in range(config.num_hidden_layers):
        prefix = f"Qformer.bert.encoder.layer.{i}"
        out |= {
            f"{prefix}.intermediate.dense.weight": torch.randn(wide, width) * 0.2,
            f"{prefix}.intermediate.dense.bias": torch.randn(wide) * 0.1,
            f"{prefix}.output.dense.weight": torch.randn(width, wide) * 0.2,
            f"{prefix}.output.dense.bias": torch.randn(width) * 0.1,
            f"{prefix}.output.LayerNorm.weight": torch.ones(width),
            f"{prefix}.output.LayerNorm.bias": torch.zeros(width),
        }
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def train_some(model: torch.nn.Module, parameters: Iterable[torch.Tensor], batch: Batch, steps: int) -> list[float]:
    """The LLM's loss of each of some plain AdamW steps on one batch."""
    optimizer, losses = torch.optim.AdamW(parameters, lr=5e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        found = model(batch)
        found.total.backward()
        optimizer.step()
        losses.append(float(found.terms["llm"].detach()))
    return losses
