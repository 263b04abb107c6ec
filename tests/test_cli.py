"""The command line on the model that ships with the package."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import models
import pytest

from ftbert import cli
from ftbert.demo import SENTENCES, demo_model_path

TEXTS = ["我的卡丢了", "where is my parcel?", "怎么退款", "I forgot my password"]


@pytest.fixture(scope="module")
def model():
    return demo_model_path()


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_predict_every_format_alike(model, tmp_path):
    import ftbert

    with ftbert.FastBertClassifier.load(model, runtime="direct") as classifier:
        expected = [(p.label, p.scores) for p in classifier.predict(TEXTS)]
        labels = list(classifier.labels)
    inputs = {
        "in.tsv": "text\tid\n" + "".join("%s\t%d\n" % (t, i) for i, t in enumerate(TEXTS)),
        "in.csv": "id,text\n" + "".join('%d,"%s"\n' % (i, t) for i, t in enumerate(TEXTS)),
        "in.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in TEXTS),
        "in.txt": "".join(t + "\n" for t in TEXTS),
    }
    for name, content in inputs.items():
        source = write(tmp_path / name, content)
        target = tmp_path / "out.jsonl"
        assert run("predict", model, source, "-o", target, "--no-progress", "--device", "cpu") == 0
        records = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert [record["text"] for record in records] == TEXTS
        for record, (label, scores) in zip(records, expected):
            assert record["label"] == label and record["truncated"] is False
            assert set(record) == {"text", "label", "score", "truncated"} | {"score:" + name for name in labels}
            for key, score in scores.items():
                assert abs(record["score:" + key] - score) <= 2e-6


def test_predict_reads_a_pipe_and_keeps_the_header(model):
    command = [sys.executable, "-m", "ftbert", "predict", model, "--no-scores", "--device", "cpu"]
    text = subprocess.check_output(
        command, input="\n".join(TEXTS).encode("utf-8"), cwd=os.path.dirname(__file__) + "/.."
    )
    lines = text.decode("utf-8").splitlines()
    assert lines[0] == "text\tlabel\tscore\ttruncated"
    assert [line.split("\t")[0] for line in lines[1:]] == TEXTS
    assert all(len(line.split("\t")) == 4 and 0 < float(line.split("\t")[2]) <= 1 for line in lines[1:])


def test_pairs_are_one_row(model, tmp_path):
    source = write(tmp_path / "in.tsv", "q\ta\nhow\tso\n")
    target = tmp_path / "out.csv"
    assert run("predict", model, source, "-o", target, "--text-column", "q", "--pair-column", "a", "--no-scores") == 0
    assert target.read_text(encoding="utf-8").splitlines()[0] == '"text","text_pair","label","score","truncated"'


def test_bad_rows_are_named_and_nothing_is_written(model, tmp_path, capsys):
    source = write(tmp_path / "in.tsv", "text\tlabel\ngood\tx\nbad\nbad\tx\ty\n")
    target = tmp_path / "out.tsv"
    target.write_text("old")
    assert run("predict", model, source, "-o", target) == 1
    message = capsys.readouterr().err
    assert "2 of 3 rows" in message and "line 3: expected 2 columns, got 1" in message and "line 4" in message
    assert target.read_text() == "old" and sorted(os.listdir(str(tmp_path))) == ["in.tsv", "out.tsv"]


def test_truncation_error_refuses_the_long_text(model, tmp_path, capsys):
    source = write(tmp_path / "in.txt", "short\n" + "很长" * 2000 + "\n")
    target = tmp_path / "out.tsv"
    assert run("predict", model, source, "-o", target, "--truncation", "error") == 1
    assert "truncat" in capsys.readouterr().err and not target.exists()
    assert run("predict", model, source, "-o", target, "--truncation", "head") == 0
    assert [line.split("\t")[3] for line in target.read_text(encoding="utf-8").splitlines()] == ["truncated", "0", "1"]


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["nonsense"], 2, "No such command"),
        (["predict"], 2, "Missing argument"),
        (["predict", "no/such/model", __file__], 1, "no/such/model"),
        (["info", "no/such/model"], 1, "no/such/model"),
        (["serve", "a=x", "a=y"], 1, "stands twice"),
        (["checkpoint", "inspect", "no/such"], 1, "no/such"),
    ],
)
def test_misuse_says_what_is_wrong(arguments, status, message, capsys):
    assert run(*arguments) == status
    assert message in capsys.readouterr().err


def test_predict_refuses_a_device_or_precision_that_is_not_there(model, tmp_path, capsys):
    source = write(tmp_path / "in.txt", "x\n")
    for option, value in (("--device", "tpu"), ("--precision", "fp64"), ("--runtime", "magic"), ("--truncation", "no")):
        assert run("predict", model, source, option, value) == 1
        assert value in capsys.readouterr().err


def test_info_and_inspect_say_what_is_there(model, capsys):
    assert run("info", model) == 0
    assert "labels" in capsys.readouterr().out
    assert run("checkpoint", "inspect", model) == 0
    assert "bert/embeddings/word_embeddings" in capsys.readouterr().out


def test_version(capsys):
    import ftbert

    assert run("--version") == 0
    assert capsys.readouterr().out == "ftbert %s\n" % ftbert.__version__


def test_names_are_printed_as_they_are(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no line breaks, however long the temporary folder's name is
    folder = tmp_path / "[red] :smile:" / ("long" * 20)
    shutil.copytree(model, str(folder))
    assert run("info", folder) == 0
    assert "[red] :smile:" in capsys.readouterr().out
    assert run("demo", "[bold]:cat:", "--seconds", "0.01") == 0
    assert "[bold]:cat:" in capsys.readouterr().out


def test_gzip_is_read_and_other_files_are_not_taken_for_lines(model, tmp_path, capsys):
    with gzip.open(str(tmp_path / "in.tsv.gz"), "wb") as file:
        file.write("text\n我的卡丢了\n".encode())
    assert run("predict", model, tmp_path / "in.tsv.gz", "--no-scores", "-o", tmp_path / "out.tsv") == 0
    assert (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()[1].startswith("我的卡丢了\tcard_lost\t")
    write(tmp_path / "in.json", '[{"text": "a"}]')
    write(tmp_path / "in.txt", "a\n")
    (tmp_path / "cut.txt.gz").write_bytes((tmp_path / "in.tsv.gz").read_bytes()[:30])
    before = sorted(os.listdir(str(tmp_path)))
    for name, output, message in [
        ("in.json", "-", "expected .tsv, .csv, .jsonl or .txt, got .json"),
        ("in.txt", tmp_path / "out.parquet", "got .parquet"),
        ("in.txt", tmp_path / "out.tsv.gz", "expected an uncompressed file"),
        ("in.txt", tmp_path, "it is a folder"),
        ("cut.txt.gz", "-", "ended before"),
    ]:
        assert run("predict", model, tmp_path / name, "-o", output) == 1
        assert message in capsys.readouterr().err
    assert sorted(os.listdir(str(tmp_path))) == before


def test_a_reader_that_leaves_is_no_error(model, tmp_path):
    source = write(tmp_path / "in.txt", "refund please\n" * 20000)
    script = '"%s" -m ftbert predict "%s" "%s" --no-scores --device cpu | head -1 >/dev/null; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script % (sys.executable, model, source)],
        cwd=os.path.dirname(__file__) + "/..", stderr=subprocess.PIPE,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_told_in_a_line(model, tmp_path):
    source = write(tmp_path / "in.txt", "refund please\n" * 2000)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ftbert", "predict", model, str(source), "--device", "cpu"],
            cwd=os.path.dirname(__file__) + "/..", stdout=full, stderr=subprocess.PIPE, universal_newlines=True,
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_bench_of_an_encoder(tmp_path, capsys):
    models.google_folder(tmp_path, num_labels=0)
    assert run("bench", tmp_path, "--seconds", "0.01", "--device", "cpu") == 0
    assert "texts/s" in capsys.readouterr().out


def test_demo_runs(capsys):
    assert run("demo", "--seconds", "0.05") == 0
    assert "texts per second" in capsys.readouterr().out


def test_the_shipped_model_knows_the_demo_sentences(model):
    import ftbert

    expected = ["card_lost", "refund", "order_status", "password_reset", "invoice", "payment_failed"]
    expected += ["refund", "order_status", "cancel_order", "password_reset", "human_agent", "change_address"]
    with ftbert.FastBertClassifier.load(model, runtime="direct") as classifier:
        assert [prediction.label for prediction in classifier.predict(SENTENCES)] == expected
    size = sum(os.path.getsize(os.path.join(model, name)) for name in os.listdir(model))
    assert size <= 5e6


def test_bench_writes_its_figures(model, tmp_path, capsys):
    target = tmp_path / "bench.json"
    assert run("bench", model, "--seconds", "0.02", "--json", target, "--device", "cpu") == 0
    result = json.loads(target.read_text())
    assert len(result["results"]) == 5 and all(record["milliseconds"] > 0 for record in result["results"])
    assert result["engine"].startswith("cpu ")


def test_an_interrupted_training_says_so(tmp_path, capsys, monkeypatch):
    """Ctrl-C in the second epoch: the first is saved, and the command says that it can go on."""
    from ftbert.training import trainer

    plan = trainer.epoch_plan

    def interrupted(lengths, batch_size, seed, epoch):
        if epoch:
            raise KeyboardInterrupt
        return plan(lengths, batch_size, seed, epoch)

    rows = [
        ("card lost %d" % index, "lost") if index % 2 else ("money back %d" % index, "refund") for index in range(40)
    ]
    train = tmp_path / "t.tsv"
    train.write_text("text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    sizes = json.dumps({"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16})
    arguments = ["finetune", "--train", train, "--output", tmp_path / "m", "--config", sizes, "--epochs", "2"]
    arguments += ["--option", "progress=false", "--option", "tensorboard=false", "--device", "cpu"]
    monkeypatch.setattr(trainer, "epoch_plan", interrupted)
    assert run(*arguments) == 0
    assert "Interrupted: this is the best epoch so far." in capsys.readouterr().err
    monkeypatch.setattr(trainer, "epoch_plan", plan)
    assert run(*arguments) == 0
    assert "Interrupted" not in capsys.readouterr().err


def test_finetune_writes_a_folder_that_predict_reads(tmp_path, capsys):
    rows = [("refund", "money back please"), ("refund", "退款"), ("card", "lost my card"), ("card", "卡丢了")] * 6
    train = write(
        tmp_path / "train.tsv", "label\ttext\n" + "".join("%s\t%s %d\n" % (a, b, i) for i, (a, b) in enumerate(rows))
    )
    sizes = '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}'
    target = tmp_path / "model"
    arguments = ["finetune", "--train", train, "--dev", train, "--output", target, "--config", sizes, "--epochs", "2"]
    assert (
        run(*(arguments + ["--learning-rate", "0.01", "--option", "report=false", "--option", "progress=false"])) == 0
    )
    assert "accuracy" in capsys.readouterr().out
    assert run("predict", target, write(tmp_path / "in.txt", "卡丢了\n"), "-o", tmp_path / "out.csv") == 0
    assert run("finetune", "--train", train, "--output", target, "--config", "{") == 1
    assert "--config: expected JSON" in capsys.readouterr().err


def test_new_columns_take_a_prefix(model, tmp_path):
    source = write(tmp_path / "in.tsv", "text\nwhere is my parcel?\n")
    target = tmp_path / "out.jsonl"
    assert run("predict", model, source, "-o", target, "--prefix", "our_", "--device", "cpu", "--no-progress") == 0
    (record,) = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    new = {name for name in record if name != "text"}
    assert {"our_label", "our_score", "our_truncated"} < new and all(name.startswith("our_") for name in new)


def test_options_reach_ray(model, tmp_path, monkeypatch):
    from ftbert import distributed

    seen = []
    monkeypatch.setattr(distributed, "predict", lambda *arguments, **settings: seen.append((arguments, settings)))
    options = ["--prefix", "p_", "--no-scores", "--max-length", "20", "--truncation", "tail", "--batch-tokens", "99"]
    options += ["--threads", "3", "--workers", "2", "--output-format", "csv", "--overwrite", "--device", "cpu"]
    assert run("predict", model, tmp_path, "-o", tmp_path / "out", "--ray", *options) == 0
    ((arguments, settings),) = seen
    assert arguments == (str(tmp_path), model)
    expected = {
        "output": str(tmp_path / "out"), "prefix": "p_", "scores": False, "max_length": 20, "truncation": "tail",
        "batch_tokens": 99, "cpus_per_worker": 3, "workers": 2, "output_format": "csv", "overwrite": True,
        "device": "cpu", "runtime": "direct",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    "options", [["--ray"], ["--ray", "-o", "out", "--format", "tsv"], ["--overwrite"], ["--workers", "2"]]
)
def test_options_that_do_not_go_together(model, tmp_path, capsys, options):
    source = write(tmp_path / "in.tsv", "text\na\n")
    assert run("predict", model, source, *options) != 0
    assert "expected" in capsys.readouterr().err
