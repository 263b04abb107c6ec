"""Pretrained models, fetched from the Hugging Face hub; without it, what to fetch and where to put it."""

import os
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

from ftbert.checkpoint import load_model_folder
from ftbert.checkpoint.streams import new_folder
from ftbert.errors import CheckpointError, ConfigError, UnavailableError

__all__ = ["PRETRAINED", "Pretrained", "download"]


class Pretrained(NamedTuple):
    """Where google-research/bert's released model is: on the hub, and as google's own archive."""

    repository: str
    archive: str


_GOOGLE = "https://storage.googleapis.com/bert_models/"

# The names that people use. Miniatures: Turc et al. 2019, "Well-Read Students Learn Better".
PRETRAINED: Dict[str, Pretrained] = {
    "bert-base-chinese": Pretrained(
        "google-bert/bert-base-chinese", _GOOGLE + "2018_11_03/chinese_L-12_H-768_A-12.zip"
    ),
    "bert-base-uncased": Pretrained(
        "google-bert/bert-base-uncased", _GOOGLE + "2018_10_18/uncased_L-12_H-768_A-12.zip"
    ),
    "bert-base-cased": Pretrained(
        "google-bert/bert-base-cased", _GOOGLE + "2018_10_18/cased_L-12_H-768_A-12.zip"
    ),
    "bert-base-multilingual-cased": Pretrained(
        "google-bert/bert-base-multilingual-cased", _GOOGLE + "2018_11_23/multi_cased_L-12_H-768_A-12.zip"
    ),
    "bert-base-multilingual-uncased": Pretrained(
        "google-bert/bert-base-multilingual-uncased", _GOOGLE + "2018_11_03/multilingual_L-12_H-768_A-12.zip"
    ),
    "bert-large-uncased": Pretrained(
        "google-bert/bert-large-uncased", _GOOGLE + "2018_10_18/uncased_L-24_H-1024_A-16.zip"
    ),
    "bert-large-cased": Pretrained(
        "google-bert/bert-large-cased", _GOOGLE + "2018_10_18/cased_L-24_H-1024_A-16.zip"
    ),
    "bert-large-uncased-whole-word-masking": Pretrained(
        "google-bert/bert-large-uncased-whole-word-masking",
        _GOOGLE + "2019_05_30/wwm_uncased_L-24_H-1024_A-16.zip",
    ),
    "bert-large-cased-whole-word-masking": Pretrained(
        "google-bert/bert-large-cased-whole-word-masking", _GOOGLE + "2019_05_30/wwm_cased_L-24_H-1024_A-16.zip"
    ),
    "bert-tiny": Pretrained("google/bert_uncased_L-2_H-128_A-2", _GOOGLE + "2020_02_20/uncased_L-2_H-128_A-2.zip"),
    "bert-mini": Pretrained("google/bert_uncased_L-4_H-256_A-4", _GOOGLE + "2020_02_20/uncased_L-4_H-256_A-4.zip"),
    "bert-small": Pretrained("google/bert_uncased_L-4_H-512_A-8", _GOOGLE + "2020_02_20/uncased_L-4_H-512_A-8.zip"),
    "bert-medium": Pretrained("google/bert_uncased_L-8_H-512_A-8", _GOOGLE + "2020_02_20/uncased_L-8_H-512_A-8.zip"),
}  # fmt: skip

# Google's own names of them: those of its archives.
_BY_ARCHIVE = {entry.archive[entry.archive.rindex("/") + 1 : -len(".zip")]: entry for entry in PRETRAINED.values()}

# The files that make a model folder. Pickles and the weights of other frameworks stay where they are.
NEEDED = ("config.json", "model.safetensors", "vocab.txt")
WANTED = NEEDED + (
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "LICENSE",
)


def download(name: str, dst: str, revision: Optional[str] = None) -> str:
    """Fetches a pretrained model into a folder that `finetune(pretrained=...)` and the checkpoint tools read.

    The hub's cache is used: a broken transfer goes on where it stopped, a second call copies. Mirrors, proxies, tokens
    and the place of the cache are set as huggingface_hub says (HF_ENDPOINT, HF_TOKEN, HF_HOME ...).

    Args:
        name: a key of `PRETRAINED`, google's name of the same ("chinese_L-12_H-768_A-12"), or "user/model" for any BERT
            on the hub.
        dst: a new or empty folder; written whole, or left as it was on any failure.
        revision: branch, tag or commit on the hub; None: its main branch.

    Returns:
        dst.

    Raises:
        ConfigError: no such name.
        UnavailableError: huggingface_hub is not installed or the hub cannot be reached; the message says what to fetch
            by other means and where to put it.
        CheckpointError: what came is no BERT that ftbert reads, or `dst` is taken.
    """
    known = PRETRAINED.get(name) or _BY_ARCHIVE.get(name)
    if known is None and (name.count("/") != 1 or not all(name.split("/"))):
        raise ConfigError(
            "name: expected one of %s, or user/model as on the Hugging Face hub, got %r."
            % (", ".join(PRETRAINED), name)
        )
    repository = known.repository if known else name
    with new_folder(dst) as folder:
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise UnavailableError(
                "download: expected the package huggingface_hub, found none (%s). pip install 'ftbert[download]'.\n%s"
                % (error, _by_hand(repository, known, dst, revision))
            ) from error
        for file in _fetch(snapshot_download, repository, known, dst, revision):
            # The cache holds links; the folder must stand by itself.
            shutil.copyfile(file, os.path.join(folder, os.path.basename(file)))
        if not any(file.endswith(".safetensors") for file in os.listdir(folder)):
            raise CheckpointError(
                "%s has no model.safetensors%s; a pickle is not fetched, because opening it can run any code.\n%s"
                % (repository, " at " + revision if revision else "", _by_hand(repository, known, dst, revision))
            )
        load_model_folder(folder)
    return dst


def _fetch(
    snapshot_download: Any, repository: str, known: Optional[Pretrained], dst: str, revision: Optional[str]
) -> List[str]:
    """Paths of the files in the hub's cache, there after this call."""
    try:
        cached = snapshot_download(repository, revision=revision, allow_patterns=list(WANTED))
    except Exception as error:  # its versions raise errors of requests, httpx, urllib3 and their own
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnavailableError(
            "download: could not fetch %s from the Hugging Face hub (%s: %s).\n%s"
            % (repository, type(error).__name__, first, _by_hand(repository, known, dst, revision))
        ) from error
    return [
        os.path.join(cached, file) for file in sorted(os.listdir(cached)) if file in WANTED or file.startswith("model-")
    ]


def _by_hand(repository: str, known: Optional[Pretrained], dst: str, revision: Optional[str]) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    base = "%s/%s/resolve/%s/" % (endpoint, repository, revision or "main")
    lines = ["By hand, on a machine that can: fetch these files and put them into %s" % os.path.abspath(dst)]
    lines += ["  " + base + file for file in NEEDED]
    if known:
        lines += ["or fetch google's archive and unpack it: the folder in it is read as it is", "  " + known.archive]
    lines.append("Where a mirror of the hub is nearer, name it in HF_ENDPOINT and try again.")
    return "\n".join(lines)
