"""A tokenizer's vocabulary and settings, from the files of a model folder."""

import os
from typing import Any, Dict, List, Tuple

from ftbert.errors import CheckpointError
from ftbert.json_files import read_json_object

__all__ = ["GOOGLE_WORD_CHARS", "HUGGING_FACE_WORD_CHARS", "read_tokenizer_settings", "read_vocab"]

# google-research/bert gives up on longer words, as does Hugging Face, with another limit.
GOOGLE_WORD_CHARS = 200
HUGGING_FACE_WORD_CHARS = 100

_SETTINGS = ("lower_case", "strip_accents", "chinese_chars", "max_word_chars")


def read_vocab(path: str) -> List[str]:
    """The pieces of a vocab.txt, by id: one a line, as google-research/bert reads it.

    Raises:
        CheckpointError: absent, or not UTF-8.
    """
    try:
        with open(path, "r", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "%s: expected a readable UTF-8 vocabulary, one piece a line: %s" % (path, error)
        ) from error
    if not lines[-1]:
        lines.pop()
    return [line.strip() for line in lines]


def _read_json(path: str) -> Dict[str, Any]:
    return read_json_object(path) if os.path.exists(path) else {}


def _vocab_of_tokenizer_json(path: str, model: Dict[str, Any]) -> List[str]:
    if model.get("type", "WordPiece") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(
            "%s: expected a WordPiece model, got %r. ftbert tokenizes as BERT does; this tokenizer is another."
            % (path, model.get("type"))
        )
    pieces = [""] * (max(model["vocab"].values(), default=-1) + 1)
    for piece, index in model["vocab"].items():
        pieces[index] = piece
    return pieces


def read_tokenizer_settings(folder: str) -> Tuple[List[str], Dict[str, Any]]:
    """The vocabulary of a model folder, and the other arguments of `ftbert.tokenization.Tokenizer`.

    Our folders say everything in ftbert.json; Hugging Face's in tokenizer_config.json, else in tokenizer.json;
    google-research/bert's say nothing, and None leaves it to the vocabulary.

    Raises:
        CheckpointError: no vocabulary there, or not BERT's.
    """
    vocab_path = os.path.join(folder, "vocab.txt")
    json_path = os.path.join(folder, "tokenizer.json")
    ours = _read_json(os.path.join(folder, "ftbert.json"))
    if ours:
        settings = ours.get("tokenizer")
        if not isinstance(settings, dict) or sorted(settings) != sorted(_SETTINGS):
            raise CheckpointError(
                "%s: expected 'tokenizer' with %s, got %r."
                % (os.path.join(folder, "ftbert.json"), ", ".join(_SETTINGS), settings)
            )
        flags = [settings[key] for key in _SETTINGS[:-1]]
        if not all(isinstance(flag, bool) for flag in flags) or type(settings["max_word_chars"]) is not int:
            raise CheckpointError(
                "%s: expected true, false and a whole number in 'tokenizer', got %r."
                % (os.path.join(folder, "ftbert.json"), settings)
            )
        return read_vocab(vocab_path), dict(settings)
    config = _read_json(os.path.join(folder, "tokenizer_config.json"))
    rust = _read_json(json_path)
    model = rust.get("model") or {}
    if os.path.exists(vocab_path):
        vocab = read_vocab(vocab_path)
    elif rust:
        vocab = _vocab_of_tokenizer_json(json_path, model)
    else:
        raise CheckpointError(
            "%s: expected vocab.txt or tokenizer.json. Copy it from the folder of the model that this one was trained "
            "from." % folder
        )
    normalizer = rust.get("normalizer") or {}

    def setting(key: str, rust_key: str) -> Any:
        return config[key] if config.get(key) is not None else normalizer.get(rust_key)

    chinese_chars = setting("tokenize_chinese_chars", "handle_chinese_chars")
    of_hugging_face = os.path.exists(os.path.join(folder, "config.json"))
    default_chars = HUGGING_FACE_WORD_CHARS if of_hugging_face else GOOGLE_WORD_CHARS
    return vocab, {
        "lower_case": setting("do_lower_case", "lowercase"),
        "strip_accents": setting("strip_accents", "strip_accents"),
        "chinese_chars": True if chinese_chars is None else chinese_chars,
        "max_word_chars": model.get("max_input_chars_per_word", default_chars),
    }
