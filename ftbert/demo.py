"""`ftbert demo`: the classifier that ships with the package, on real sentences, next to plain TensorFlow."""

import importlib.util
import os
import sys
from typing import Any, List, Optional, Tuple

from ftbert.console import make_console
from ftbert.errors import UnavailableError
from ftbert.measure import Latency, time_calls
from ftbert.predictor import FastBertClassifier

__all__ = ["SENTENCES", "demo_model_path", "run"]

# None of these stands in the data that the model was trained on.
SENTENCES = [
    "我的卡昨天掉在出租车上了，先帮我冻结一下",
    "这件大衣我不想要了，怎么把钱退回来？",
    "快递显示三天没动静，东西到底到哪儿了",
    "密码输错太多次，账号被锁住了",
    "能不能给我开一张公司抬头的发票",
    "用信用卡付款一直被拒绝，是怎么回事",
    "I'd like my money back for the headphones I returned last week",
    "my parcel has been stuck in the same depot since Monday",
    "please cancel the order I placed an hour ago",
    "it keeps saying my password is wrong, how do I get back in?",
    "is anyone there? I want to talk to a real person",
    "could you change the delivery address to my office?",
]


def demo_model_path() -> str:
    """The folder of the shipped model.

    Raises:
        UnavailableError: this installation does not hold it.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo_model")
    if not os.path.isdir(path):
        raise UnavailableError("Expected the demonstration model in %s. Install the package again." % path)
    return path


def _time(classifier: FastBertClassifier, texts: List[str], seconds: float) -> Tuple[Latency, float]:
    one = time_calls(lambda: classifier.predict(texts[:1]), seconds)
    many = time_calls(lambda: classifier.predict(texts), seconds)
    return one, len(texts) / many.median * 1e3


def run(texts: Optional[List[str]] = None, seconds: float = 1.0) -> None:
    """Classifies, prints a table, and times this engine and plain TensorFlow with the same model.

    Args:
        texts: what to classify; None: `SENTENCES`.
        seconds: how long each timing goes on.
    """
    from rich.table import Table

    console = make_console()
    texts = texts or SENTENCES
    path = demo_model_path()
    # TensorFlow 1.14, once imported, has no __spec__, which find_spec takes for an error.
    has_tensorflow = "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is not None
    with FastBertClassifier.load(path, runtime="session" if has_tensorflow else "direct") as classifier:
        table = Table(title="ftbert demo: customer-service intents", caption=classifier.engine)
        for heading, style in (("text", ""), ("label", "bold green"), ("score", "cyan")):
            table.add_column(heading, style=style, overflow="fold")
        for text, prediction in zip(texts, classifier.predict(texts)):  # type: str, Prediction
            table.add_row(text, prediction.label, "%.3f" % prediction.score)
        console.print(table)
        many = texts * max(1, 240 // len(texts))
        timings: List[Any] = [("ftbert, " + classifier.engine, _time(classifier, many, seconds))]
    if has_tensorflow:
        with FastBertClassifier.load(path, runtime="tensorflow") as plain:
            timings.append(("plain TensorFlow, same model", _time(plain, many, seconds)))
    speed = Table(title="from text to label on this machine, %d texts of mixed length" % len(many))
    speed.add_column("engine", overflow="fold")
    speed.add_column("one text, ms (median)", justify="right")
    speed.add_column("texts per second", justify="right")
    for name, (one, rate) in timings:
        speed.add_row(name, "%.2f" % one.median, "{:,.0f}".format(rate))
    console.print(speed)
    if len(timings) == 2:
        (one, rate), (plain_one, plain_rate) = timings[0][1], timings[1][1]
        console.print(
            "Here: %.1fx faster for one text, %.1fx for many." % (plain_one.median / one.median, rate / plain_rate)
        )
    else:
        console.print("TensorFlow is not installed, so there is nothing to compare with.")
