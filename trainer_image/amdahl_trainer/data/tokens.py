"""How does text become tokens? Bytes, or byte pairs merged by rules learnt on the corpus (arXiv 1508.07909).

Both are plain Python. The byte-pair tokenizer remembers no words: encoding a text costs what its algorithm costs each
time, as augmenting pipelines do, and `data.tokenize: cached` is the cure. Tokens 0-255 are bytes, 256 starts a
document, higher ones are merges in the order learnt.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

BOS = 256
FIRST_MERGE = 257

Pair = tuple[int, int]

#: Words with one leading space, numbers, signs, or white space; merges never cross them. Runs are bounded because
#: encoding a word takes time quadratic in its length.
WORDS = re.compile(r" ?[^\W\d_]{1,32}| ?[\d_]{1,32}| ?[^\w\s]{1,32}|\s{1,32}")


class Tokenizer(Protocol):
    """Bytes of UTF-8 text to tokens, and back to a number of bytes."""

    def encode(self, text: bytes) -> list[int]:
        """Tokens of `text`."""

    def token_bytes(self) -> list[int]:
        """Bytes that each token stands for; 0 for the start of a document."""


class Bytes:
    """One token a byte."""

    def encode(self, text: bytes) -> list[int]:
        """Tokens of `text`."""
        return list(text)

    def token_bytes(self) -> list[int]:
        """One each, none for BOS."""
        return [1] * 256 + [0]


class BytePairs:
    """Bytes merged in pairs, lowest rule first, within words."""

    def __init__(self, merges: Sequence[Pair]) -> None:
        """`merges[i]` is the pair that becomes token `FIRST_MERGE + i`."""
        self._merged = {pair: FIRST_MERGE + rank for rank, pair in enumerate(merges)}
        self._bytes = [1] * 256 + [0]
        for left, right in merges:
            self._bytes.append(self._bytes[left] + self._bytes[right])

    def encode(self, text: bytes) -> list[int]:
        """Normalise, cut into words and merge each word's bytes."""
        return [token for word in split_words(text) for token in self.encode_word(word)]

    def encode_word(self, word: bytes) -> list[int]:
        """Merge until no rule fits, always the earliest learnt first."""
        tokens = list(word)
        while len(tokens) > 1:
            rules = [self._merged.get(pair, _NO_RULE) for pair in pairwise(tokens)]
            rule = min(rules)
            if rule == _NO_RULE:
                break
            at = rules.index(rule)
            tokens[at : at + 2] = [rule]
        return tokens

    def token_bytes(self) -> list[int]:
        """Lengths of the merged byte strings."""
        return self._bytes


class Remembering:
    """Another tokenizer's tokens, each text encoded once and kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[bytes, list[int]] = {}

    def encode(self, text: bytes) -> list[int]:
        """Tokens of `text`."""
        if text not in self._kept:
            self._kept[text] = self._tokenizer.encode(text)
        return self._kept[text]

    def token_bytes(self) -> list[int]:
        """The other's."""
        return self._tokenizer.token_bytes()


_NO_RULE = 1 << 30


def split_words(text: bytes) -> Iterator[bytes]:
    """The words of a text in Unicode normal form C."""
    return (word.encode() for word in WORDS.findall(unicodedata.normalize("NFC", text.decode())))


def learn_merges(texts: Iterable[bytes], count: int) -> list[Pair]:
    """The `count` byte-pair rules of a corpus: the most frequent pair first, ties to the smaller pair.

    Only the words that hold the merged pair are counted again, which makes 255 rules on 1.7 MB a matter of seconds.
    """
    words = [
        (list(word), times) for word, times in sorted(Counter(w for text in texts for w in split_words(text)).items())
    ]
    seen: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (tokens, times) in enumerate(words):
        _count_pairs(seen, where, index, tokens, times)
    merges: list[Pair] = []
    while len(merges) < count and seen:
        pair = min(seen, key=lambda found: (-seen[found], found))
        if seen[pair] < 2:
            break
        new = FIRST_MERGE + len(merges)
        merges.append(pair)
        for index in where.pop(pair):
            tokens, times = words[index]
            for old in pairwise(tokens):
                seen[old] -= times
            merged = merge(tokens, pair, new)
            words[index] = (merged, times)
            _count_pairs(seen, where, index, merged, times)
        del seen[pair]
    return merges


def merge(tokens: Sequence[int], pair: Pair, new: int) -> list[int]:
    """`tokens` with every `pair`, from the left, replaced by `new`."""
    merged: list[int] = []
    at = 0
    while at < len(tokens):
        fits = at + 1 < len(tokens) and (tokens[at], tokens[at + 1]) == pair
        merged.append(new if fits else tokens[at])
        at += 2 if fits else 1
    return merged


def _count_pairs(
    seen: Counter[Pair], where: defaultdict[Pair, set[int]], index: int, tokens: Sequence[int], times: int
) -> None:
    for pair in pairwise(tokens):
        seen[pair] += times
        where[pair].add(index)
