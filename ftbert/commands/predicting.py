"""`ftbert predict`, `demo` and `bench`."""

import collections
import os
import sys
from typing import TYPE_CHECKING, Any, Deque, Dict, Iterator, List, Optional

import typer

from ftbert.console import make_console
from ftbert.errors import InputError

if TYPE_CHECKING:
    from ftbert.rows import Row

__all__ = ["register"]

MODEL = typer.Argument(..., help="A model folder: ours, google-research/bert's, run_classifier's or Hugging Face's.")
DEVICE = typer.Option("auto", help="auto, cpu, cuda or cuda:<index>.")
DEVICES = typer.Option(
    "auto", "--device", help="auto, cpu, cuda, cuda:<index>; all, or several with commas: a copy of the model on each."
)
PRECISION = typer.Option("auto", help="auto, fp32, bf16, fp16, int8 or fp8.")
THREADS = typer.Option(None, help="CPU threads; left out: what the process may use.")


def devices_of(device: str) -> Dict[str, Any]:
    """The option --device as arguments of `FastBertClassifier.load`."""
    if device == "all":
        return {"devices": "all"}
    if "," in device:
        return {"devices": [name.strip() for name in device.split(",")]}
    return {"device": device}


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(predict)
    app.command()(demo)
    app.command()(bench)


def predict(
    model: str = MODEL,
    file: str = typer.Argument("-", help="TSV, CSV or JSON lines (by ending), else plain lines; - is standard input."),
    output: str = typer.Option("-", "--output", "-o", help="Where to write; - is standard output."),
    format: Optional[str] = typer.Option(None, help="tsv, csv, jsonl or lines; left out: by the file's ending."),
    output_format: Optional[str] = typer.Option(
        None, help="tsv, csv or jsonl; left out: by the output's ending, else the input's."
    ),
    text_column: str = typer.Option("text", help="The column or key that holds the text."),
    pair_column: Optional[str] = typer.Option(None, help="The second text's, for sentence pairs."),
    scores: bool = typer.Option(True, help="Write a column with the score of every label."),
    max_length: Optional[int] = typer.Option(None, help="Longest row in tokens; left out: the model's."),
    truncation: Optional[str] = typer.Option(None, help="error, head, tail or head+tail; left out: the model's."),
    batch_tokens: Optional[int] = typer.Option(None, help="Tokens in one batch; left out: what suits the device."),
    device: str = DEVICES,
    precision: str = PRECISION,
    threads: Optional[int] = THREADS,
    runtime: str = typer.Option("direct", help="direct, session or tensorflow."),
    progress: bool = typer.Option(True, help="Show a progress bar when standard error is a terminal."),
    prefix: str = typer.Option("", help="Put before the names of the new columns (label, score, truncated)."),
    ray: bool = typer.Option(False, "--ray", help="Spread a file or folder over a Ray cluster (needs ftbert[ray])."),
    overwrite: bool = typer.Option(False, help="With --ray: replace the output folder of an earlier call."),
    workers: Optional[int] = typer.Option(None, help="With --ray: models at work; left out: one a node or card."),
) -> None:
    """Classify the texts of a file. Nothing is written unless every row could be used."""
    if ray:
        if file == "-" or output == "-":
            raise InputError("--ray: expected a file or folder to read and a folder to write (--output), got a pipe.")
        if format is not None:
            raise InputError("--format: expected nothing with --ray, which goes by the files' endings.")
        from ftbert import distributed

        distributed.predict(
            file,
            model,
            output=output,
            text_column=text_column,
            pair_column=pair_column,
            scores=scores,
            prefix=prefix,
            output_format=output_format,
            device=device,
            precision=precision,
            max_length=max_length,
            truncation=truncation,
            runtime=runtime,
            batch_tokens=batch_tokens,
            workers=workers,
            cpus_per_worker=threads,
            progress=progress and sys.stderr.isatty(),
            overwrite=overwrite,
        )
        return
    if overwrite or workers is not None:
        raise InputError("--overwrite and --workers: expected with --ray alone; a single file is replaced anyway.")
    from ftbert.predictor import FastBertClassifier
    from ftbert.rows import RowWriter, check_rows, detect_format, read_rows

    output_format = output_format or _format_of_output(output, detect_format(file, format))
    total = None
    if file != "-":
        total = check_rows(file, format, text_column, pair_column, "\t\r\n" if output_format == "tsv" else "")
    pairs = pair_column is not None
    with FastBertClassifier.load(
        model,
        **devices_of(device),
        precision=precision,
        max_length=max_length,
        truncation=truncation,
        threads=threads,
        runtime=runtime,
    ) as classifier:
        labels = list(classifier.labels)
        columns = (["text", "text_pair"] if pairs else ["text"]) + [
            prefix + name for name in ("label", "score", "truncated")
        ]
        score_columns = [prefix + "score:" + label for label in labels] if scores else []
        ahead: "Deque[Row]" = collections.deque()

        def texts() -> Iterator[Any]:
            for row in read_rows(file, format, text_column, pair_column):
                ahead.append(row)  # the stream reads ahead of what it has answered, in another thread
                yield row.text

        predictions = classifier.predict_stream(texts(), batch_tokens=batch_tokens)
        with RowWriter(output, columns + score_columns, output_format) as writer:
            with _bar(total, progress) as bar:
                for prediction in predictions:
                    row = ahead.popleft()
                    cut: Any = prediction.truncated if output_format == "jsonl" else int(prediction.truncated)
                    values: Dict[str, Any] = {
                        prefix + "label": prediction.label,
                        prefix + "score": _rounded(prediction.score),
                        prefix + "truncated": cut,
                    }
                    values["text"] = row.text[0] if pairs else row.text
                    if pairs:
                        values["text_pair"] = row.text[1]
                    for column, label in zip(score_columns, labels):
                        values[column] = _rounded(prediction.scores[label])
                    writer.write(values)
                    bar.update(1)


def _rounded(score: float) -> float:
    return round(float(score), 6)


def _format_of_output(output: str, input_format: str) -> str:
    from ftbert.rows import detect_format

    if output.lower().endswith(".gz"):
        raise InputError("--output: expected an uncompressed file, got %s. Write to - and pipe it to gzip." % output)
    ending = os.path.splitext(output)[1]
    format = detect_format(output) if output != "-" and ending else input_format
    return "tsv" if format == "lines" else format


def _bar(total: Optional[int], progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=" texts", disable=not (progress and sys.stderr.isatty()))


def demo(
    texts: Optional[List[str]] = typer.Argument(
        None, help="Texts to classify; left out: a dozen that ship with ftbert."
    ),
    seconds: float = typer.Option(1.0, help="How long each timing goes on."),
) -> None:
    """Classify with the shipped model and time it next to plain TensorFlow."""
    from ftbert import demo as module

    module.run(list(texts) if texts else None, seconds)


def bench(
    model: str = MODEL,
    device: str = DEVICES,
    precision: str = PRECISION,
    threads: Optional[int] = THREADS,
    runtime: str = typer.Option("direct", help="direct, session or tensorflow."),
    seconds: float = typer.Option(2.0, help="How long each shape is timed."),
    json_output: Optional[str] = typer.Option(None, "--json", help="Write the figures to this file too."),
) -> None:
    """Time a model at the shapes a service meets, from token ids to logits."""
    from rich.table import Table

    from ftbert.measure import measure_model
    from ftbert.predictor import FastBertClassifier

    with FastBertClassifier.load(
        model, **devices_of(device), precision=precision, threads=threads, runtime=runtime
    ) as classifier:
        records = measure_model(classifier, seconds)
        name = classifier.engine
    table = Table(title="%s on %s" % (os.path.basename(os.path.abspath(model)), name))
    for heading in ("work", "ms (median)", "ms (least)", "ms (p95)", "texts/s"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for record in records:
        table.add_row(
            record["work"],
            "%.2f" % record["milliseconds"],
            "%.2f" % record["least"],
            "%.2f" % record["p95"],
            "{:,.0f}".format(record["texts_per_second"]),
        )
    make_console().print(table)
    if json_output:
        write_json(json_output, {"model": model, "engine": name, "results": records})


def write_json(path: str, value: Any) -> None:
    """Writes JSON beside the file named and renames it."""
    import json

    temporary = "%s.%d.tmp" % (path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(temporary, path)
