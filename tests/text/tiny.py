"""A T5 model small enough for a test: real classes, random weights, a vocabulary of a few words and all letters."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = ("a", "red", "circle", "blue", "square", "on", "sand")


def save_tokenizer(folder: Path, end_mark: bool = True) -> None:
    """Writes a tokenizer of T5's make: Unigram, spaces as part of words, the end mark behind every prompt."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -4.0) for letter in string.ascii_lowercase]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    if end_mark:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(length=512)  # settings that the encoder must not take over
    tokenizer.enable_truncation(512)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def tiny_t5(width: int = 64) -> T5ForConditionalGeneration:
    """Encoder and decoder, as in the published folders; the decoder must be left out in loading."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40,
            d_model=width,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ).eval()
