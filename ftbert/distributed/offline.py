"""`predict`: Parquet, CSV or JSON lines through one predictor per device of a Ray cluster.

Ray Data streams blocks of rows from the readers through a pool of actors, each holding one loaded model, to the
writers; readers wait while the actors are busy, so memory stays bounded however large the input is. A block is the
unit of work: what a dead node had under way is computed again elsewhere, and the file that a task writes is named
after the task, so that a repetition replaces it. The output folder gets its name when all of it is written and its
rows are counted.
"""

import contextlib
import gc
import os
import re
import traceback
import types
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple, Union

from ftbert import errors
from ftbert.distributed.output import check_output, write
from ftbert.distributed.reading import KINDS, format_of, read, unreadable
from ftbert.errors import ConfigError, FtbertError, InputError, UnavailableError

if TYPE_CHECKING:
    import ray.data

__all__ = ["predict"]

# Batches in a block, the unit that is computed again after a failure. Readers make blocks of up to 128 MB, a million
# texts.
_BLOCK_BATCHES = 8


def predict(
    dataset: Union[str, "ray.data.Dataset"],
    model: str,
    output: Optional[str] = None,
    text_column: str = "text",
    pair_column: Optional[str] = None,
    scores: bool = False,
    prefix: str = "",
    output_format: Optional[str] = None,
    device: str = "auto",
    precision: str = "auto",
    max_length: Optional[int] = None,
    truncation: Optional[str] = None,
    runtime: str = "direct",
    batch_tokens: Optional[int] = None,
    batch_rows: int = 1024,
    workers: Union[int, Tuple[int, int], None] = None,
    cpus_per_worker: Optional[float] = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Optional["ray.data.Dataset"]:
    """Labels every row of a dataset.

    Args:
        dataset: a Ray dataset, or the path of a file or a folder of Parquet, CSV or JSON lines that every node can
            read. CSV columns are read as strings, as they stand.
        model: the model folder's path on every node.
        output: a folder that every node can write; it must not exist, but see `overwrite`. Its files are named
            part-00000.parquet (or .csv, .jsonl) and so on. None: nothing is written.
        text_column: the column with the texts.
        pair_column: the column with the second texts, for models of pairs.
        scores: also write a column "score:<label>" for every label.
        prefix: put before the names of the new columns; needed when the data has a column "label" already.
        output_format: "parquet", "csv" or "jsonl"; None: the input's, or Parquet for a dataset.
        device: "cpu", "cuda" or "auto": cards where the cluster has any.
        precision, max_length, truncation, runtime, batch_tokens: as `FastBertClassifier.load`.
        batch_rows: rows handed to an actor at a time.
        workers: actors, or (least, most) of them; None: one for each card, or for each node.
        cpus_per_worker: processors of a CPU actor; None: all of the smallest node but one, which is left to readers.
        progress: show Ray Data's progress bars.
        overwrite: an output that an earlier call wrote is replaced when all of the new one is written; until then it
            stays as it is. A folder with anything else in it is never touched.

    Returns:
        The predicted dataset, not yet computed, when `output` is None; else None. The new columns are "label",
        "score" and "truncated".

    Raises:
        InputError: a column or a text is missing, the input has no known format, one of its files cannot be read (the
            message names it), the output exists or is the input.
        UnavailableError: Ray is not installed.
        FtbertError: what a worker raised, such as a model that cannot be loaded there.
    """
    ray = _import_ray()
    if not isinstance(batch_rows, int) or batch_rows < 1:
        raise ConfigError("batch_rows: expected an integer of at least 1, got %r." % (batch_rows,))
    format_in = None
    path_in = None
    if isinstance(dataset, (str, os.PathLike)):
        path_in = os.path.abspath(os.fspath(dataset))
        format_in = format_of(path_in)
    format_out = output_format or format_in or "parquet"
    if format_out not in KINDS:
        raise ConfigError("output_format: expected one of %s, got %r." % (", ".join(KINDS), output_format))
    if output is not None:
        check_output(output, overwrite, path_in)
    if not ray.is_initialized():
        ray.init(logging_level="warning", log_to_driver=False)
    columns = [text_column] + ([pair_column] if pair_column else [])
    with _own_errors(path_in, format_in):
        rows: Any = read(path_in, format_in) if path_in is not None and format_in is not None else dataset
        rows.context.enable_progress_bars = progress
        _check_columns(rows, columns, ["label", "score", "truncated"], prefix, scores)
    settings: Dict[str, Any] = {
        "model": os.path.abspath(model) if os.path.exists(model) else model,
        "columns": columns,
        "scores": scores,
        "prefix": prefix,
        "options": {
            "precision": precision, "max_length": max_length, "truncation": truncation, "runtime": runtime,
            "batch_tokens": batch_tokens,
        },
    }  # fmt: skip
    resources, pool = _pool(ray, device, workers, cpus_per_worker)
    on_cards = "num_gpus" in resources
    settings["options"].update(
        device="cuda" if on_cards else "cpu", threads=None if on_cards else max(1, int(resources["num_cpus"]))
    )
    read_rows = rows
    if _has_room(ray, resources):
        rows = rows.repartition(target_num_rows_per_block=_BLOCK_BATCHES * batch_rows)
    predicted = rows.map_batches(
        _Worker,
        fn_constructor_kwargs=settings,
        batch_format="pyarrow",
        batch_size=batch_rows,
        compute=pool,
        **resources,
    )
    context = predicted.context
    context.enable_progress_bars = progress
    if output is None:
        return predicted
    with _own_errors(path_in, format_in):
        # Counted as they are read: of Parquet that takes the footers alone.
        write(predicted, output, format_out, read, None if path_in is None else read_rows.count())
    return None


class _Worker:
    """One loaded model in an actor."""

    def __init__(self, model: str, columns: List[str], scores: bool, prefix: str, options: Dict[str, Any]) -> None:
        from ftbert.predictor import FastBertClassifier

        self._failed: Optional[FtbertError] = None
        try:
            self._predictor = FastBertClassifier.load(model, **options)
        except FtbertError as error:
            # Raised with the first block: an actor that fails while it starts would be started again and again.
            self._failed = error
        self._columns = columns
        self._scores = scores
        self._prefix = prefix

    def __call__(self, table: Any) -> Any:
        """pyarrow.Table -> the same with the new columns."""
        import pyarrow

        if self._failed is not None:
            raise self._failed
        texts = [_texts_of(table, column) for column in self._columns]
        rows = texts[0] if len(texts) == 1 else list(zip(texts[0], texts[1]))
        predictions = self._predictor.predict(rows)
        new = [
            ("label", pyarrow.array([item.label for item in predictions], pyarrow.string())),
            ("score", pyarrow.array([item.score for item in predictions], pyarrow.float32())),
            ("truncated", pyarrow.array([item.truncated for item in predictions], pyarrow.bool_())),
        ]
        if self._scores:
            all_scores = [item.scores for item in predictions]
            for label in self._predictor.labels:
                new.append(("score:" + label, pyarrow.array([row[label] for row in all_scores], pyarrow.float32())))
        for name, column in new:
            table = table.append_column(self._prefix + name, column)
        return table


def _texts_of(table: Any, column: str) -> List[str]:
    try:
        texts = table.column(column).to_pylist()
    except UnicodeDecodeError as error:
        raise InputError("Column %r: expected UTF-8 in every row, got %s." % (column, error)) from None
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                "Column %r: expected a string in every row, got %s in row %d of a block. Remove such rows, or put '' "
                "in their place." % (column, "null" if text is None else type(text).__name__, index)
            )
    return texts


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise UnavailableError("Expected Ray, which is not installed: pip install 'ftbert[ray]'.") from error
    return ray


def _check_columns(rows: Any, needed: List[str], new: List[str], prefix: str, scores: bool) -> None:
    schema = rows.schema()
    if schema is None:
        raise InputError("Expected a dataset with columns, got one without rows.")
    for name in needed:
        if name not in schema.names:
            raise InputError("Expected a column %r, found %s." % (name, ", ".join(schema.names)))
    taken = [prefix + name for name in new if prefix + name in schema.names]
    taken += [name for name in schema.names if scores and name.startswith(prefix + "score:")]
    if taken:
        raise InputError(
            "The data has columns named %s already. Give prefix='predicted_' or the like." % ", ".join(map(repr, taken))
        )


def _pool(
    ray: Any, device: str, workers: Union[int, Tuple[int, int], None], cpus: Optional[float]
) -> Tuple[Dict[str, float], Any]:
    """The resources of one actor, and how many there may be."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    cards = int(sum(node.get("GPU", 0) for node in nodes))
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("device: expected 'auto', 'cpu' or 'cuda', got %r." % (device,))
    if device == "cuda" and not cards:
        raise UnavailableError("device='cuda': expected a cluster with GPUs, this one has none.")
    if device == "cpu" or not cards:
        if cpus is None:
            cpus = max(0.5, min(node["CPU"] for node in nodes) - 1)
        resources = {"num_cpus": float(cpus)}
        most = sum(int(node["CPU"] // cpus) for node in nodes)
    else:
        resources = {"num_cpus": float(cpus if cpus is not None else 1), "num_gpus": 1.0}
        most = cards
    if workers is None:
        workers = (1, max(1, most))
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    return resources, ray.data.ActorPoolStrategy(min_size=least, max_size=most)


def _has_room(ray: Any, resources: Dict[str, float]) -> bool:
    """Whether a task of one processor fits beside an actor; a cluster of single processors makes no smaller blocks."""
    return any(node["Alive"] and node["Resources"].get("CPU", 0) - resources["num_cpus"] >= 1 for node in ray.nodes())


@contextlib.contextmanager
def _own_errors(path: Optional[str], kind: Optional[str]) -> Iterator[None]:
    """Ray's errors as ours: what a worker raised, or the file of the input that cannot be read."""
    import pyarrow
    import ray.exceptions

    try:
        with _released_actors():
            yield
    except (ray.exceptions.RayError, pyarrow.ArrowException, OSError) as error:
        # A worker's error is found in the traceback that Ray's error carries as text.
        found = re.findall(r"ftbert\.errors\.(\w+): (.+)", str(error))
        known = getattr(errors, found[-1][0], None) if found else None
        if known is not None:
            raise known(found[-1][1]) from error
        from_reader = not isinstance(error, ray.exceptions.RayError) or "Read" in str(error).partition("\n")[0]
        if path is not None and kind is not None and from_reader:
            wrong = unreadable(path, kind)
            if wrong is not None:
                raise InputError(wrong) from error
        raise


@contextlib.contextmanager
def _released_actors() -> Iterator[None]:
    """Ends the actors of work that failed or was interrupted.

    Ray Data ends them by forgetting their handles, but frames of its threads, which the error's traceback leads to,
    still hold some: whoever keeps the error, as a notebook does, would keep processors and cards from the next call.
    """
    try:
        yield
    except BaseException as error:
        seen: List[BaseException] = []
        chain: List[Optional[BaseException]] = [error]
        while chain:
            one = chain.pop()
            if one is None or one in seen:
                continue
            seen.append(one)
            for frame, _ in traceback.walk_tb(one.__traceback__):
                _clear(frame)
            chain += [one.__cause__, one.__context__]
        gc.collect()  # what the frames held refers to itself
        raise


def _clear(frame: Optional[types.FrameType]) -> None:
    """Forgets the variables of a frame and of its callers, up to one that still runs."""
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:
            return
        frame = frame.f_back
