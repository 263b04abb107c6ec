"""google-research/bert's BertModel with the encoder in one native op: same constructor, getters and variables.

A graph that says `modeling.BertModel(...)` says `fast_modeling.FastBertModel(...)` instead; its Saver, its checkpoints
and the layers on top stay as they are. The op reads the graph's own variables: at the first run, and again whenever
they changed.

Shapes: B rows, S longest row, H hidden, V vocabulary.
"""

from typing import Any, List, Optional

from tensorflow.compat import v1 as tf

from ftbert._ops import PRECISIONS
from ftbert._ops.tensorflow_op import load_tensorflow_op, refresh_encoders
from ftbert.config import BertConfig
from ftbert.errors import ConfigError
from ftbert.modeling import create_variables, variable_specs

__all__ = ["FastBertModel", "refresh"]

_ACTIVATIONS = {"gelu_erf": 0, "gelu_tanh": 1, "relu": 2}


def refresh() -> None:
    """Makes every FastBertModel of this process take over its variables' values at its next run.

    Needed only after a change that leaves no trace in what is looked at on every run: where each variable lies in
    memory, every number of the small ones (biases, norms) and 64 numbers of each large one. A restored checkpoint, an
    assignment and an optimizer's step are all seen; single numbers of a matrix, changed in place, may not be.
    """
    refresh_encoders()


class FastBertModel:
    """BERT for prediction, with the interface of google-research/bert's `BertModel`.

    Padding is removed before the encoder runs, so a batch costs what its tokens cost.

    Args:
        config: `ftbert.config.BertConfig`, or google-research/bert's own `BertConfig` object.
        is_training: False; the op has no gradient.
        input_ids: int (B, S).
        input_mask: int (B, S), in each row ones and then zeros; None: no padding. A row of zeros alone is a row whose
            every token counts, as in google-research/bert, where a mask that is equal everywhere masks nothing.
        token_type_ids: int (B, S); None: all 0.
        use_one_hot_embeddings: accepted for the interface; the op looks rows up.
        scope: variable scope, "bert" unless told.
        device: "cpu", "cuda" or "cuda:<index>": where the engine runs. The op itself is a CPU op.
        precision: "fp32", or another that the device has.
        threads: CPU threads; None: what the process may use.

    Raises:
        ConfigError: is_training is True, the mode is eager, or an argument is out of range.
        UnavailableError: there is no op for this TensorFlow.
    """

    def __init__(
        self,
        config: Any,
        is_training: bool,
        input_ids: Any,
        input_mask: Optional[Any] = None,
        token_type_ids: Optional[Any] = None,
        use_one_hot_embeddings: bool = False,
        scope: Optional[str] = None,
        device: str = "cpu",
        precision: str = "fp32",
        threads: Optional[int] = None,
    ) -> None:
        if is_training:
            raise ConfigError(
                "is_training: expected False, got True. The native encoder has no gradient; train with "
                "ftbert.modeling.BertModel, whose variables are the same, and predict with FastBertModel."
            )
        if tf.executing_eagerly():
            raise ConfigError(
                "Expected graph mode, got eager execution. Build the model inside `with tf.Graph().as_default():`, or "
                "call tf.compat.v1.disable_eager_execution() first."
            )
        if precision not in PRECISIONS:
            raise ConfigError("precision: expected one of %s, got %r." % (sorted(PRECISIONS), precision))
        self._config = BertConfig.of(config)
        self._ops = load_tensorflow_op()
        self._graph = tf.get_default_graph()
        self._options = {
            "num_heads": self._config.num_attention_heads,
            "activation": _ACTIVATIONS[self._config.hidden_act],
            "norm_epsilon": self._config.norm_epsilon,
            "device": device,
            "precision": PRECISIONS[precision],
            "threads": threads or 0,
        }
        with tf.name_scope("fast_bert"):
            ids = tf.cast(input_ids, tf.int32)
            ids.shape.assert_has_rank(2)
            mask = tf.ones_like(ids) if input_mask is None else tf.cast(input_mask, tf.int32)
            types = tf.zeros_like(ids) if token_type_ids is None else tf.cast(token_type_ids, tf.int32)
        self._inputs = (ids, mask, types)
        self.variables = create_variables(variable_specs(self._config), self._config.initializer_range, scope=scope)
        self._sequence_output: Optional[Any] = None
        self._pooled_output: Optional[Any] = None

    def get_pooled_output(self) -> Any:
        """float32 (B, H): the first token's state through the pooler.

        Where no sequence output has been asked for before, the last layer runs for the first tokens alone.
        """
        if self._pooled_output is None:
            _, self._pooled_output = self._encode(want_sequence=False)
        return self._pooled_output

    def get_sequence_output(self) -> Any:
        """float32 (B, S, H): the last layer's states, 0 where the mask is 0."""
        if self._sequence_output is None:
            self._sequence_output, pooled = self._encode(want_sequence=True)
            if self._pooled_output is None:
                self._pooled_output = pooled
        return self._sequence_output

    def get_embedding_table(self) -> Any:
        """float32 (V, H): the word embeddings, a variable."""
        return self.variables["bert/embeddings/word_embeddings"]

    def get_all_encoder_layers(self) -> List[Any]:
        """Always raises: the op keeps the last layer's states alone."""
        raise ConfigError(
            "get_all_encoder_layers: the native encoder gives the last layer only (get_sequence_output). For the "
            "states of every layer use ftbert.modeling.BertModel, whose variables are the same."
        )

    def get_embedding_output(self) -> Any:
        """Always raises: the op keeps the last layer's states alone."""
        raise ConfigError(
            "get_embedding_output: the native encoder gives the last layer only (get_sequence_output). For the sum of "
            "the embeddings use ftbert.modeling.BertModel, whose variables are the same."
        )

    def _encode(self, want_sequence: bool) -> Any:
        """Adds the op: (sequence (B, S, H) or empty, pooled (B, H))."""
        # Word embeddings last: the engine folds the small tables into them and then needs no copy.
        names = sorted(self.variables, key=lambda name: name.endswith("word_embeddings"))
        rows, longest = self._inputs[0].shape.as_list()
        with self._graph.as_default(), tf.name_scope("fast_bert"), tf.device("/cpu:0"):
            sequence, pooled = self._ops.ftbert_encoder(
                input_ids=self._inputs[0],
                input_mask=self._inputs[1],
                token_type_ids=self._inputs[2],
                weights=[tf.convert_to_tensor(self.variables[name]) for name in names],
                weight_names=names,
                want_sequence=want_sequence,
                want_pooled=True,
                **self._options
            )
        pooled.set_shape([rows, self._config.hidden_size])
        if want_sequence:
            sequence.set_shape([rows, longest, self._config.hidden_size])
        return sequence, pooled
