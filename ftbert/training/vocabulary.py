"""A WordPiece vocabulary made from the training texts, for models trained from scratch."""

import collections
from typing import Iterable, List, Mapping, Sequence

from ftbert.errors import ConfigError
from ftbert.texts import Text
from ftbert.tokenization import Tokenizer
from ftbert.words import WordSplitter

__all__ = ["SPECIAL_PIECES", "build_tokenizer"]

SPECIAL_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _flat(texts: Iterable[Text]) -> Iterable[str]:
    for text in texts:
        if isinstance(text, str):
            yield text
        else:
            for part in text:
                yield part


def _letters(words: Mapping[str, int], min_frequency: int, room: int) -> List[str]:
    """The characters that begin words, and "##" + those that continue them: the most frequent, about `room`."""
    counts: "collections.Counter[str]" = collections.Counter()
    for word, count in words.items():
        counts[word[0]] += count
        for char in word[1:]:
            counts["##" + char] += count
    by_frequency = sorted(counts, key=lambda piece: (-counts[piece], piece))
    frequent = [piece for piece in by_frequency if counts[piece] >= min_frequency][:room]
    # A character is known or not: where one form of it stays, so does the other.
    chars = {piece[-1] for piece in frequent}
    alone = sorted(char for char in chars if char not in counts)
    return [piece for piece in by_frequency if piece[-1] in chars] + alone


def build_tokenizer(
    texts: Sequence[Text], vocab_size: int = 8000, lower_case: bool = True, min_frequency: int = 2
) -> Tokenizer:
    """Trains a vocabulary on texts; the same texts give the same vocabulary.

    Args:
        texts: strings or pairs.
        vocab_size: at most this many pieces, special ones included. Characters come first, by frequency, so that a
            small vocabulary of Chinese keeps the frequent characters.
        lower_case: whether texts are lower-cased (and accents dropped).
        min_frequency: pieces seen less often are left out.
    """
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import CharDelimiterSplit
    from tokenizers.trainers import WordPieceTrainer

    if vocab_size < len(SPECIAL_PIECES) + 10:
        raise ConfigError("vocab_size: expected at least %d, got %d." % (len(SPECIAL_PIECES) + 10, vocab_size))
    # Words are split exactly as the finished tokenizer splits them.
    splitter = WordSplitter(lower_case, strip_accents=lower_case, chinese_chars=True)
    words: "collections.Counter[str]" = collections.Counter()
    for text in _flat(texts):
        words.update(splitter.split(text))
    room = max(10, (vocab_size - len(SPECIAL_PIECES)) * 3 // 4)
    letters = _letters(words, min_frequency, room)
    while len(letters) > vocab_size - len(SPECIAL_PIECES):
        room = room * 9 // 10
        letters = _letters(words, min_frequency, room)
    kept = sorted({piece[-1] for piece in letters})
    # The trainer numbers unknown letters in the order of a hash table, and breaks ties by number: two runs would
    # differ. Given all letters as special pieces, and so numbered, it has nothing left to chance.
    rust = RustTokenizer(WordPiece(unk_token="[UNK]"))
    rust.pre_tokenizer = CharDelimiterSplit(" ")
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=SPECIAL_PIECES + letters,
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        show_progress=False,
    )
    repeated = (" ".join([word] * count) for word, count in sorted(words.items()))
    rust.train_from_iterator(repeated, trainer)
    vocab = rust.get_vocab()
    pieces: List[str] = [""] * len(vocab)
    for piece, index in vocab.items():
        pieces[index] = piece
    return Tokenizer(pieces, lower_case)
