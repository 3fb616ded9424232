"""Text for diffusion: encoding captions, and a small encoder to be trained with its UNet."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["encode", "make_text_encoder", "make_tokenizer"]


def make_tokenizer(words: Sequence[str], max_length: int) -> "CLIPTokenizer":
    """CLIP's tokenizer with a vocabulary in which each of some words is one token.

    Other words become tokens of their letters. The same words give the same tokens.

    Args:
        words: Words.
        max_length: Tokens of a text, with those of start and end.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    backend = CLIPTokenizer().backend_tokenizer
    pieces = {
        piece
        for word in words
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(word)
        )
    }
    letters = sorted(ByteLevel.alphabet())
    merges = _merges([(*piece[:-1], f"{piece[-1]}</w>") for piece in sorted(pieces)])
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _merges(words: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Pairs of symbols to merge, in turn, until each word is one symbol."""
    merges = []
    while True:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not pairs:
            return merges
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(pair)
        words = [_merged(word, pair) for word in words]


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    symbols: list[str] = []
    for symbol in word:
        if symbols and (symbols[-1], symbol) == pair:
            symbols[-1] += symbol
        else:
            symbols.append(symbol)
    return tuple(symbols)


def make_text_encoder(tokenizer: "CLIPTokenizer", **config: Any) -> "CLIPTextModel":
    """A CLIP text encoder with random weights.

    Args:
        tokenizer: Its tokenizer.
        **config: Of transformers' ``CLIPTextConfig``, such as ``hidden_size``.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )


def encode(
    tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel", captions: Sequence[str]
) -> torch.Tensor:
    """Last hidden states of captions, (N, L, D); each distinct one is encoded once.

    Args:
        tokenizer: Tokenizer; longer captions are cut.
        encoder: Text encoder.
        captions: N texts, at least one.
    """
    distinct = list(dict.fromkeys(captions))
    tokens = tokenizer(
        distinct,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    states = encoder(tokens.input_ids.to(encoder.device))[0]
    place = {caption: index for index, caption in enumerate(distinct)}
    return states[[place[caption] for caption in captions]]
