"""The names that users import."""

import subprocess
import sys

import pytest

import ftbert


def test_every_public_name_is_there():
    for name in ftbert.__all__:
        assert getattr(ftbert, name) is not None
    assert set(ftbert.__all__) <= set(dir(ftbert))
    with pytest.raises(AttributeError, match="no_such_name"):
        ftbert.no_such_name  # noqa: B018


@pytest.mark.parametrize("first", ["import ftbert", "from ftbert.finetune import prepare", "import ftbert.calibrate"])
def test_module_and_function_of_one_name_are_both_there(first):
    code = first + "\nimport ftbert\nassert callable(ftbert.finetune) and callable(ftbert.calibrate)\n"
    code += "from ftbert.finetune import finetune, prepare\nassert ftbert.finetune.prepare is prepare\n"
    code += "try:\n    ftbert.finetune(train=None, output='x')\n"
    code += "except ftbert.ConfigError as error:\n    assert 'train' in str(error)\n"
    code += "else:\n    raise SystemExit('no error')\n"
    assert subprocess.call([sys.executable, "-c", code]) == 0


def test_predicting_directly_never_imports_tensorflow():
    code = "import sys, ftbert\nfrom ftbert.demo import demo_model_path\n"
    code += "with ftbert.FastBertClassifier.load(demo_model_path(), runtime='direct') as clf:\n    clf.predict(['x'])\n"
    code += "loaded = [name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras', 'torch')]\n"
    code += "assert loaded == [], loaded\n"
    assert subprocess.call([sys.executable, "-c", code]) == 0
