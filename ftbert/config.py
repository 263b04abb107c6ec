"""The shape of a BERT model: one frozen record, every key checked."""

import dataclasses
import json
from typing import Any, Dict, Mapping

from ftbert.errors import ConfigError
from ftbert.paths import PathLike

__all__ = ["ACTIVATIONS", "BertConfig"]

# Names as they stand in configuration files -> what the engine and the twin compute.
# google-research/bert's own `gelu` is the tanh form, Hugging Face's `gelu` is the erf form.
ACTIVATIONS = {
    "google": {"gelu": "gelu_tanh", "relu": "relu"},
    "huggingface": {
        "gelu": "gelu_erf",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    },
    "ftbert": {"gelu_erf": "gelu_erf", "gelu_tanh": "gelu_tanh", "relu": "relu"},
}

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

# Keys of other tools that would change the arithmetic if they had another value.
_MUST_BE = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of one BERT encoder.

    Attributes:
        vocab_size: V, number of word pieces.
        hidden_size: H, a multiple of ``num_attention_heads``; the head size H / N is 8 to 128, or smaller in toy
            models.
        num_hidden_layers: L.
        num_attention_heads: N.
        intermediate_size: F, width of the feed-forward layer.
        max_position_embeddings: the longest row, special tokens included.
        type_vocab_size: number of segment ids.
        hidden_act: "gelu_erf", "gelu_tanh" or "relu".
        hidden_dropout_prob: dropout of training; prediction has none.
        attention_probs_dropout_prob: likewise, on attention weights.
        initializer_range: standard deviation of new weights.
        norm_epsilon: added to the variance in layer norm; google-research/bert and Hugging Face use 1e-12.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu_tanh"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        for key in _POSITIVE:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError("%s: expected a positive integer, got %r." % (key, value))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                "hidden_size: expected a multiple of num_attention_heads (%d), got %d."
                % (self.num_attention_heads, self.hidden_size)
            )
        if self.head_size > 128:
            raise ConfigError(
                "hidden_size / num_attention_heads: expected a head size of at most 128, got %d." % self.head_size
            )
        if self.hidden_act not in ACTIVATIONS["ftbert"]:
            raise ConfigError(
                "hidden_act: expected one of %s, got %r." % (sorted(ACTIVATIONS["ftbert"]), self.hidden_act)
            )
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ConfigError("%s: expected a number in [0, 1), got %r." % (key, value))
        for key in ("initializer_range", "norm_epsilon"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ConfigError("%s: expected a number in (0, 1), got %r." % (key, value))

    @property
    def head_size(self) -> int:
        """D = H / N."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def of(cls, config: Any) -> "BertConfig":
        """The configuration itself, or what google-research/bert's own object of this name says.

        Raises:
            ConfigError: it is neither.
        """
        if isinstance(config, cls):
            return config
        if not callable(getattr(config, "to_dict", None)):
            raise ConfigError(
                "config: expected a BertConfig of ftbert or google-research/bert, got %s. For a file write "
                "BertConfig.from_json_file(path)." % type(config).__name__
            )
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "google") -> "BertConfig":
        """Reads a configuration file's contents.

        Args:
            values: the parsed JSON. Keys that do not concern the encoder (labels, tokenizer, versions) are passed over.
            source: "google" (bert_config.json), "huggingface" (config.json) or "ftbert": it decides what "gelu" means
                and which names the keys have.

        Raises:
            ConfigError: a key is missing, of the wrong type, out of range, or asks for another architecture.
        """
        if source not in ACTIVATIONS:
            raise ConfigError("source: expected one of %s, got %r." % (sorted(ACTIVATIONS), source))
        if not isinstance(values, Mapping):
            raise ConfigError("Expected a JSON object of BERT's sizes, got %s." % type(values).__name__)
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise ConfigError(
                "model_type: expected 'bert', got %r. ftbert runs BERT encoders only; other architectures share file "
                "names but not arithmetic." % (model_type,)
            )
        for key, expected in _MUST_BE.items():
            if values.get(key, expected) not in (expected, None):
                raise ConfigError(
                    "%s: expected %r, got %r; this engine has no such form." % (key, expected, values[key])
                )
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        if source == "huggingface" and "layer_norm_eps" in values:
            kept["norm_epsilon"] = values["layer_norm_eps"]
        missing = [key for key in _POSITIVE if key not in kept]
        if source != "ftbert" and "type_vocab_size" in missing:
            missing.remove("type_vocab_size")
        if missing:
            raise ConfigError("Expected %s in the configuration, found %s." % (", ".join(missing), sorted(values)))
        act = values.get("hidden_act", "gelu_tanh" if source == "ftbert" else "gelu")
        names = ACTIVATIONS[source]
        if act not in names:
            ours = act in ACTIVATIONS["ftbert"]
            raise ConfigError(
                "hidden_act: expected one of %s, got %r.%s"
                % (sorted(names), act, " That is ftbert's own name: is ftbert.json missing beside it?" if ours else "")
            )
        kept["hidden_act"] = names[act]
        return cls(**kept)

    @classmethod
    def from_json_file(cls, path: PathLike, source: str = "google") -> "BertConfig":
        """`from_dict` on a file's contents."""
        try:
            with open(path, "r", encoding="utf-8-sig") as file:
                values = json.load(file)
        except (OSError, ValueError) as error:
            raise ConfigError("%s: expected a readable JSON file of BERT's sizes: %s" % (path, error)) from error
        try:
            return cls.from_dict(values, source)
        except ConfigError as error:
            raise ConfigError("%s: %s" % (path, error)) from error

    def to_dict(self, source: str = "ftbert") -> Dict[str, Any]:
        """The inverse of `from_dict`: the keys and the activation's name as `source` writes them."""
        values = dataclasses.asdict(self)
        matches = [name for name, act in ACTIVATIONS[source].items() if act == self.hidden_act]
        if not matches:
            raise ConfigError(
                "hidden_act %r: %s's configuration files have no name for it (theirs: %s)."
                % (self.hidden_act, source, sorted(ACTIVATIONS[source]))
            )
        values["hidden_act"] = matches[0]
        if source == "huggingface":
            values["layer_norm_eps"] = values.pop("norm_epsilon")
            values["model_type"] = "bert"
        return values
