"""The one owner of what becomes of text: cleaning, prompts, end tokens, lengths, tokenising and decoding.

Captions are cleaned when a sample is read, never in the shards, so a change of rule needs no new shards.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.library_folders import read_tokenizer
from rb.core.modality import modality_spec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAX_WORDS = 50  # BLIP's caption processor
_NO_WORD = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))  # its marks


def one_line(text: str) -> str:
    r"""``text`` on one line: separators (\\n, \\v, U+2028, ...) and control characters become spaces, runs of spaces one, ends stripped."""
    if not text.isprintable():  # printable text holds none of these, and nearly all text is; a space is printable
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Zs", "Cs") else c for c in text)
    return (re.sub(" +", " ", text) if "  " in text else text).strip()


def shown(name: str, most: int = 200) -> str:
    """A name from an untrusted file as it can stand on a line of an error: escaped where it cannot be printed, cut to ``most`` letters."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:most]


# What spreadsheets and scripts write where there is nothing.
_PLACEHOLDERS = frozenset({"nan", "none", "null", "n/a", "<na>", "undefined"})


def is_caption(text: str) -> bool:
    """Whether ``text`` says anything: a letter or digit is left after cleaning, and it is no word for "nothing" (nan, None, null, N/A)."""
    cleaned = clean_caption(text)
    return any(c.isalnum() for c in cleaned) and cleaned not in _PLACEHOLDERS


def clean_caption(text: str) -> str:
    """BLIP's caption rule: lower case, ``. ! " ( ) * # : ; ~`` to spaces, at most 50 words."""
    words = one_line(text).lower().translate(_NO_WORD).split()
    return " ".join(words[:MAX_WORDS])


def clean_question(text: str) -> str:
    """BLIP's rule for questions: lower case, ``. ! " ( ) * # : ; ~`` left out, at most 50 words."""
    words = one_line(text).lower().translate(dict.fromkeys(_NO_WORD)).split(" ")
    return " ".join(words[:MAX_WORDS]).strip()


@dataclass(frozen=True)
class TextProcessor:
    """Tokenises captions for the Q-Former and the LLM of one foundation.

    Attributes:
        llm_kind: ``"decoder"`` (OPT and other causal models: soft prompt, start token and prompt, caption, end token) or
            ``"encoder_decoder"`` (T5: the encoder reads soft prompt and prefix, the decoder writes the caption).
        max_text_tokens: length of every text, end token included (32 in the paper's code). Longer captions lose words, never their end.
        prompt: literal text before the caption, without spaces at its end: the caption's first word brings its own, and an LLM never saw a
            space token before a word. Empty means none for decoders and the modality's fixed prefix for T5.
    """

    qformer_tokenizer: PreTrainedTokenizerBase
    llm_tokenizer: PreTrainedTokenizerBase
    llm_kind: str
    max_text_tokens: int = 32
    prompt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.prompt.rstrip(" "))
        if self.llm_kind not in ("decoder", "encoder_decoder"):
            raise ValueError(f"llm_kind must be 'decoder' or 'encoder_decoder', got {self.llm_kind!r}")
        for name in ("cls_token_id", "sep_token_id", "pad_token_id", "bos_token_id"):
            if getattr(self.qformer_tokenizer, name) is None:
                raise ValueError(
                    f"the Q-Former's tokenizer has no {name}; it must be BERT's with '[DEC]' added as bos token"
                )
        if self.max_text_tokens < 4:
            raise ValueError(f"max_text_tokens must be at least 4, got {self.max_text_tokens}")

    @classmethod
    def from_folders(cls, qformer: Path, llm: Path, llm_kind: str, max_text_tokens: int, prompt: str) -> TextProcessor:
        """Tokenizers from local folders; ``ValueError`` names a folder that holds none."""
        loaded = [read_tokenizer(folder) for folder in (qformer, llm)]
        if loaded[0].bos_token_id is None:  # plain BERT's; BLIP-2's own brings it
            loaded[0].add_special_tokens({"bos_token": "[DEC]"})
        return cls(loaded[0], loaded[1], llm_kind, max_text_tokens, prompt)

    def check_fits(self, qformer_rows: int, qformer_positions: int, llm_rows: int) -> None:
        """Whether a model has an embedding for every id that it may be given: of words, start, end and padding.

        Args:
            qformer_rows: token embeddings of the Q-Former's text branch.
            qformer_positions: its position embeddings.
            llm_rows: token embeddings of the LLM.

        Raises:
            ValueError: names the tokenizer, the token, its id and the number of embeddings; or the length that is too large.
        """
        special = {"start token": self.dec_token_id}
        special |= {
            f"{name} token": getattr(self.qformer_tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad")
        }
        _check_ids("the Q-Former", self.qformer_tokenizer, special, qformer_rows)
        check_llm_ids(self.llm_tokenizer, self.llm_kind, llm_rows)
        if self.max_text_tokens > qformer_positions:
            raise ValueError(
                f"model.max_text_tokens: {self.max_text_tokens} is more than the {qformer_positions} positions of the Q-Former's text "
                "branch; lower it"
            )

    @property
    def dec_token_id(self) -> int:
        """The token that starts a text that the Q-Former writes (ITG): "[DEC]", BERT's added bos token."""
        return int(self.qformer_tokenizer.bos_token_id)

    @property
    def end_token_id(self) -> int:
        """What ends a caption of the LLM: see ``end_token``."""
        return end_token(self.llm_tokenizer, self.llm_kind)

    @property
    def pad_token_id(self) -> int:
        """The LLM's padding; masked everywhere, so any id serves where a tokenizer has none."""
        return padding_token(self.llm_tokenizer, self.llm_kind)

    def encode_qformer(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to ([B, T] ids, [B, T] mask), int64: [CLS] words [SEP], padded to ``max_text_tokens``.

        A fixed T keeps shapes equal on all ranks, which the gather of ITC and ITM needs.
        """
        out = self.qformer_tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_text_tokens, return_tensors="pt"
        )
        return out["input_ids"], out["attention_mask"]

    def encode_prompt(self, modality: str) -> Tensor:
        """The context between soft prompt and caption, [1, Tp] int64."""
        import torch  # here: commands that only parse need not wait for it

        if self.llm_kind == "encoder_decoder":
            text = self.prompt or modality_spec(modality).t5_prefix
            ids = [
                *list(self.llm_tokenizer(text, add_special_tokens=False)["input_ids"]),
                self.llm_tokenizer.eos_token_id,
            ]
        else:
            bos = self.llm_tokenizer.bos_token_id
            ids = [] if bos is None else [bos]
            ids += list(self.llm_tokenizer(self.prompt, add_special_tokens=False)["input_ids"]) if self.prompt else []
        return torch.tensor([ids], dtype=torch.int64)

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts, one for each row, between soft prompt and answer: ([B, Tp] ids, [B, Tp] mask), int64.

        Decoders write behind the last place, so padding is on the left, and ``max_text_tokens`` cuts what is behind them (the released code does
        both). T5's encoder reads all, its padding is on the right.
        """
        import torch  # here: commands that only parse need not wait for it

        decoder, tokenizer = self.llm_kind == "decoder", self.llm_tokenizer
        start = [] if not decoder or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        end = [] if decoder else [tokenizer.eos_token_id]
        rows = [[*start, *tokenizer(text, add_special_tokens=False)["input_ids"], *end] for text in prompts]
        if decoder:
            rows = [row[: self.max_text_tokens] for row in rows]
        width = max(map(len, rows))
        ids, mask = torch.full((len(rows), width), self.pad_token_id), torch.zeros(len(rows), width, dtype=torch.int64)
        for i, row in enumerate(rows):
            place = slice(width - len(row), None) if decoder else slice(len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        return ids, mask

    def encode_llm(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to the LLM's supervised tokens ([B, T'] ids, [B, T'] mask), int64, end token last, padded right to the longest.

        The budget is ``max_text_tokens`` with the prompt counted (decoders), so a sequence never outgrows the released code's.
        """
        import torch  # here: commands that only parse need not wait for it

        budget = self.max_text_tokens - 1
        if self.llm_kind == "decoder":
            budget -= self.encode_prompt("image").shape[1]
            if budget < 1:
                raise ValueError(
                    f"prompt {self.prompt!r} leaves no room for a caption in {self.max_text_tokens} tokens"
                )
        lead = " " if self.llm_kind == "decoder" and self.prompt else ""
        rows = [
            [*self.llm_tokenizer(lead + text, add_special_tokens=False)["input_ids"][:budget], self.end_token_id]
            for text in captions
        ]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = 1
        return ids, mask

    def decode_llm(self, ids: Tensor) -> list[str]:
        """Generated ids [B, T'] to clean one-line texts."""
        return [one_line(text) for text in self.llm_tokenizer.batch_decode(ids, skip_special_tokens=True)]


def end_token(tokenizer: PreTrainedTokenizerBase, llm_kind: str) -> int:
    """The token that ends a caption: BLIP-2's OPT learned to stop at a line break, T5 at its own end token.

    Causal models whose vocabulary has no single line break stop at their own end token. ``ValueError`` if there is none.
    """
    line_break = [] if llm_kind == "encoder_decoder" else tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(line_break) == 1:
        return int(line_break[0])
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer of the LLM ({tokenizer.name_or_path}): has no end token, so no caption could end; set eos_token in its "
            "tokenizer_config.json to the token that ends its texts"
        )
    return int(tokenizer.eos_token_id)


def padding_token(tokenizer: PreTrainedTokenizerBase, llm_kind: str) -> int:
    """The token behind shorter captions: masked, but looked up in the embedding."""
    pad = tokenizer.pad_token_id
    return end_token(tokenizer, llm_kind) if pad is None else int(pad)


def check_llm_ids(tokenizer: PreTrainedTokenizerBase, llm_kind: str, rows: int) -> None:
    """``ValueError`` unless an LLM of ``rows`` token embeddings has one for every word and for start, end and padding."""
    special = {"padding token": padding_token(tokenizer, llm_kind), "end token": end_token(tokenizer, llm_kind)}
    if llm_kind == "decoder" and tokenizer.bos_token_id is not None:
        special["start token"] = int(tokenizer.bos_token_id)
    _check_ids("the LLM", tokenizer, special, rows)


def _check_ids(owner: str, tokenizer: PreTrainedTokenizerBase, special: dict[str, int], rows: int) -> None:
    """Words have the ids from 0 to ``vocab_size`` - 1; added tokens that no caption is made of may lie beyond the embedding."""
    outside = {what: token for what, token in special.items() if not 0 <= token < rows}
    if tokenizer.vocab_size > rows:
        outside["last word"] = tokenizer.vocab_size - 1
    if outside:
        what, token = next(iter(outside.items()))
        raise ValueError(
            f"tokenizer of {owner} ({tokenizer.name_or_path}): its {what} {tokenizer.convert_ids_to_tokens(token)!r} has id {token}, but "
            f"{owner} has {rows} token embeddings; use the tokenizer that belongs to these weights"
        )
