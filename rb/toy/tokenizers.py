"""The toy foundation's tokenizers, of whole words: BERT's form for the Q-Former's text branch, OPT's and T5's forms for the LLMs."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import BertTokenizer, PreTrainedTokenizerFast

from rb.toy.vocabulary import PUNCTUATION, WORDS

IMAGE_TOKEN = "<image>"
_OPT_SPECIAL = (
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "\n",
)  # places as in facebook/opt: pad 1, </s> 2 begins and ends a text
_T5_SPECIAL = ("<pad>", "</s>", "<unk>")  # places as in google/flan-t5


def opt_tokenizer() -> PreTrainedTokenizerFast:
    """Words, punctuation and the line break, each one token; ``</s>`` in front of every text. The image token is the last id."""
    tokenizer, vocabulary = _whole_words(_OPT_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=128,
        clean_up_tokenization_spaces=True,
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation, each one token; ``</s>`` behind every text. The image token is the last id."""
    tokenizer, vocabulary = _whole_words(_T5_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=128,
        clean_up_tokenization_spaces=True,
    )


def qformer_tokenizer() -> BertTokenizer:
    """BERT's tokenizer over the toy words, with [DEC] added as its bos token, as LAVIS does."""
    vocabulary = {
        word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PUNCTUATION))
    }
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _whole_words(special: tuple[str, ...]) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer of the toy's words behind the special tokens, and its vocabulary."""
    vocabulary = {word: i for i, word in enumerate((*special, *WORDS, *PUNCTUATION, IMAGE_TOKEN))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), behavior="removed"),
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    return tokenizer, vocabulary
