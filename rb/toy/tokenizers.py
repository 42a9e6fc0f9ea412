"""The toy foundation's two tokenizers, of whole words: BERT's form for the Q-Former's text branch, OPT's form for the LLM."""

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


def opt_tokenizer() -> PreTrainedTokenizerFast:
    """Words, punctuation and the line break, each one token; ``</s>`` in front of every text. The image token is the last id."""
    vocabulary = {word: i for i, word in enumerate((*_OPT_SPECIAL, *WORDS, *PUNCTUATION, IMAGE_TOKEN))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), behavior="removed"),
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
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


def qformer_tokenizer() -> BertTokenizer:
    """BERT's tokenizer over the toy words, with [DEC] added as its bos token, as LAVIS does."""
    vocabulary = {
        word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PUNCTUATION))
    }
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
