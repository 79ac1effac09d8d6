"""A random model of BART-large-mnli's architecture: times the zero-shot baseline where its weights cannot be had.

The default shape is exactly that of https://huggingface.co/facebook/bart-large-mnli (config.json): 12 + 12 layers of
width 1024, 407 M parameters. What it answers means nothing; how long it takes is the real model's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["contradiction", "neutral", "entailment"]
SPECIAL_TOKENS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
VOCABULARY = 50265


def save_random_bart_mnli(folder: Path, **shape: Any) -> None:
    """Write the model and a tokenizer to ``folder``; ``shape`` overrides ``BartConfig`` for small tests.

    The tokenizer makes one token of a word or punctuation mark, about as many as BART's own would.
    """
    import tokenizers
    from transformers import BartConfig, BartForSequenceClassification, PreTrainedTokenizerFast

    labels = dict(enumerate(LABELS))
    config = BartConfig(vocab_size=VOCABULARY, id2label=labels, label2id={v: k for k, v in labels.items()}, **shape)
    BartForSequenceClassification(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(SPECIAL_TOKENS, unk_token="<unk>"))  # noqa: S106 - a token
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>"}
    special = {f"{name}_token": token for name, token in names.items()}
    longest = config.max_position_embeddings  # as BART's own tokenizer: longer questions are cut
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=longest, **special).save_pretrained(folder)
