"""The toy foundation's tokenizers, of whole words: BERT's form for the Q-Former's text branch, OPT's and T5's forms for the LLMs."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import BertTokenizer, PreTrainedTokenizerFast

from rb.toy.world.vocabulary import PUNCTUATION, WORDS

IMAGE_TOKEN = "<image>"
_OPT_SPECIAL = (
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "\n",
)  # places as in facebook/opt: pad 1, </s> 2 begins and ends a text
_T5_SPECIAL = ("<pad>", "</s>", "<unk>")  # places as in google/flan-t5


def image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the image token, the last of the vocabulary."""
    found = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert isinstance(found, int)  # a list where a list is asked for
    return found


def opt_tokenizer() -> PreTrainedTokenizerFast:
    """Words, punctuation and the line break, each one token; ``</s>`` in front of every text. The image token is the last id."""
    return _fast(_OPT_SPECIAL, "</s> $A", "</s> $A </s> $B", bos_token="</s>")


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation, each one token; ``</s>`` behind every text. The image token is the last id."""
    return _fast(_T5_SPECIAL, "$A </s>", "$A </s> $B </s>")


def qformer_tokenizer() -> BertTokenizer:
    """BERT's tokenizer over the toy words, with [DEC] added as its bos token, as LAVIS does."""
    vocabulary = {
        word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PUNCTUATION))
    }
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _fast(special: tuple[str, ...], single: str, pair: str, **more: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the toy's words behind the special tokens, which puts ``</s>`` where the templates for one text and for two have it."""
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=128,
        clean_up_tokenization_spaces=True,
        **more,
    )
