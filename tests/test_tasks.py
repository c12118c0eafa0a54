"""The registry of tasks, and what went by other names before tasks had packages of their own."""

import importlib
import subprocess
import sys

import pytest

pytest.importorskip("mmengine")

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

import vssm.engine
from vssm._errors import UserError
from vssm._moved import MOVED
from vssm._tasks import Task, register_task, task_of, task_of_names, tasks
from vssm.tasks import Classify, Detect, Label, Segment


@pytest.mark.parametrize(
    ("cfg", "task"),
    [
        (dict(model=dict(type="TimmClassifier")), Classify),
        (dict(model=dict(type="UNetSegmentor"), default_scope="mmengine"), Label),
        (dict(model=dict(type="MaskRCNN"), default_scope="mmdet"), Detect),
        (dict(model=dict(type="EncoderDecoder"), default_scope="mmseg"), Segment),
        # The model's type says more than the scope.
        (dict(model=dict(type="UNetSegmentor"), default_scope="mmseg"), Label),
    ],
)
def test_configs_have_tasks(cfg, task):
    assert isinstance(task_of(Config(cfg)), task)


def test_models_by_name_are_classified():
    assert isinstance(task_of_names(), Classify)


def test_a_subclass_is_of_the_same_task():
    @MODELS.register_module(force=True)
    class TaskTestClassifier(vssm.engine.TimmClassifier):
        pass

    assert isinstance(task_of(Config(dict(model=dict(type="TaskTestClassifier")))), Classify)
    assert isinstance(task_of(dict(model=dict(type=TaskTestClassifier))), Classify)


@pytest.mark.parametrize("cfg", [dict(model=dict(type="TaskTestNet")), dict(model=None), {}])
def test_a_config_without_a_task_is_told_which_there_are(cfg):
    with pytest.raises(UserError) as error:
        task_of(cfg)
    assert all(task.name in str(error.value) for task in tasks())


def test_a_task_can_be_added(monkeypatch):
    monkeypatch.setattr("vssm._tasks._TASKS", {})

    class Own(Task):
        name = "do something else"
        models = frozenset({"TaskTestNet"})
        load = predict = count = look_inside = None

    own = register_task(Own())
    assert task_of(dict(model=dict(type="TaskTestNet"))) is own and tasks() == [own]


@pytest.mark.parametrize("old", MOVED)
def test_old_module_paths_lead_to_the_new_modules(old):
    new = importlib.import_module(MOVED[old])
    assert importlib.import_module(old) is new is sys.modules[old]
    package, _, name = old.rpartition(".")
    assert getattr(importlib.import_module(package), name) is new
    assert new.__name__ == new.__spec__.name == MOVED[old]


def test_old_names_are_still_those_of_engine():
    from vssm import classify

    for name in Classify.formerly["vssm.engine"]:
        assert getattr(vssm.engine, name) is getattr(classify, name) and name in vssm.engine.__all__
    with pytest.raises(AttributeError, match="NoSuchName"):
        vssm.engine.NoSuchName  # noqa: B018


def test_old_configs_find_what_they_name(tmp_path):
    """In a process that has imported nothing: a config that imports vssm.engine, read by mmengine alone."""
    (tmp_path / "old.py").write_text('custom_imports = dict(imports=["vssm.engine"], allow_failed_imports=False)')
    script = f"""
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
Config.fromfile({str(tmp_path / "old.py")!r})
assert MODELS.get("TimmClassifier") and DATASETS.get("ImageFolder")
assert HOOKS.get("MESAHook") and METRICS.get("Accuracy")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_config_is_read_with_its_task(tmp_path):
    """Without custom imports: the reader imports what the config's task brings."""
    path = tmp_path / "bare.py"
    path.write_text('model = dict(type="TimmClassifier", model=dict(name="test_convnext", num_classes=3))')
    assert MODELS.build(vssm.engine.load_config(str(path)).model).model.num_classes == 3
    assert DATASETS.get("Digits")
