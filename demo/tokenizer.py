"""The tokenizer of the two text encoders: byte-pair encoding in CLIP's format, trained on their captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

CONTEXT = 40
"""Tokens a text may have, start and end included."""

_WORD_END = "</w>"


def new_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Train the tokenizer on what captions can contain. Any text can be encoded: every byte is in the vocabulary,
    inside a word and at its end.
    """
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    learner.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=4000,
            min_frequency=1,
            initial_alphabet=ByteLevel.alphabet(),
            end_of_word_suffix=_WORD_END,
            show_progress=False,
        ),
    )
    letters = sorted(ByteLevel.alphabet())
    learned = learner.get_vocab()
    tokens = [*letters, *(letter + _WORD_END for letter in letters)]
    tokens += [token for token in sorted(learned, key=learned.__getitem__) if token not in set(tokens)]
    # The end token has the highest id, because both text encoders find a text's end as its argmax.
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]],
        model_max_length=CONTEXT,
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids (B, CONTEXT), padded with the end token, as both pipelines' loaders do."""
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
