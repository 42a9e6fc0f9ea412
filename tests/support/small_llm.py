"""A tiny causal LM with random weights, its tokenizer without a start token, in a Hugging Face folder, for ``rb weights assemble``."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from tests.support import tiny

WORDS = ["<|endoftext|>", "<unk>", *tiny.WORDS]


def qwen2(rows: int, tied: bool) -> PreTrainedConfig:
    """A family that the toy world and its tests do not have."""
    sizes = {"hidden_size": 28, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2Config(vocab_size=rows, num_key_value_heads=1, tie_word_embeddings=tied, eos_token_id=0, **sizes)


def write_llm(
    folder: Path,
    spare: int = 0,
    tied: bool = True,
    words: list[str] = WORDS,
    config: PreTrainedConfig | None = None,
    **special: str,
) -> Path:
    """``config``'s model, or a Qwen2 with ``spare`` rows more than words; ``special`` goes to the tokenizer."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config or qwen2(len(words) + spare, tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[0], unk_token="<unk>", **special)
    made.save_pretrained(folder)
    return folder
