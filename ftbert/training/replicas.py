"""One device, or several that hold a copy of the variables each: what is the same for both, by tf.distribute."""

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from tensorflow.compat import v1 as tf

__all__ = ["Replicas"]


class Replicas:
    """The devices of one training graph. To be made, and used, while that graph is the default one.

    With several devices the variables are tf.distribute.MirroredStrategy's, and so is the sum of the gradients (NCCL on
    GPUs). Everything between is plain graph code on each device's own copies: TensorFlow 1.14 to 2.21 have it alike.

    Args:
        devices: one, or several of one kind, as TensorFlow names them.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self._strategy: Any = None
        self._mirrored: Dict[str, Any] = {}
        if len(self.devices) > 1:
            # Named here because the strategy's own choice starts up every device of the machine to look at them.
            nccl = "gpu" in self.devices[0].lower()
            operations = tf.distribute.NcclAllReduce() if nccl else tf.distribute.ReductionToOneDevice()
            self._strategy = tf.distribute.MirroredStrategy(list(self.devices), cross_device_ops=operations)

    @property
    def count(self) -> int:
        """How many devices."""
        return len(self.devices)

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Operations and variables made inside are that device's alone."""
        with tf.device(self.devices[index]):
            yield

    def part(self, rows: Any, index: int) -> Any:
        """Those of a batch's rows (B, ...) that a device works on: every `count`-th; none where there are too few."""
        return rows if self._strategy is None else rows[index :: self.count]

    def create(self, make: Callable[[], Dict[str, Any]]) -> List[Dict[str, Any]]:
        """The variables that `make` makes, by name: one dict for each device. All copies start with the same values."""
        if self._strategy is None:
            with self.on(0):
                return [make()]
        with self._strategy.scope():
            self._mirrored = make()
        copies: List[Dict[str, Any]] = [{} for _ in self.devices]
        for name, variable in self._mirrored.items():
            for mine, copy in zip(copies, self._strategy.experimental_local_results(variable)):
                mine[name] = copy
        return copies

    def gradients(
        self, names: Sequence[str], build: Callable[[int], Tuple[Any, List[Any]]]
    ) -> Tuple[List[Any], List[List[Any]]]:
        """Builds the model on every device and sums the gradients over all of them.

        Args:
            names: of the variables that the gradients are of.
            build: device's index -> (something, that device's gradients in the order of `names`).

        Returns:
            What `build` gave beside its gradients, and the sums: both a list with one entry for each device.
        """
        if self._strategy is None:
            with self.on(0):
                beside, mine = build(0)
            return [beside], [mine]
        made: Dict[int, Any] = {}

        def replica() -> List[Any]:
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            index = int(index if isinstance(index, int) else tf.get_static_value(index))
            made[index], mine = build(index)
            return mine

        # Nothing in it is Python control flow on tensors; TensorFlow 1.14 has no such switch and needs none.
        unconverted = getattr(tf.autograph.experimental, "do_not_convert", lambda function: function)
        extended = self._strategy.extended
        with self._strategy.scope():
            each = extended.call_for_each_replica(unconverted(replica))
            pairs = [(gradient, self._mirrored[name]) for gradient, name in zip(each, names)]
            sums = extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        results = [self._strategy.experimental_local_results(total) for total in sums]
        return (
            [made[index] for index in range(self.count)],
            [[result[index] for result in results] for index in range(self.count)],
        )
