"""A mistake in a section of a config is one sentence before the run starts."""

import re

import pytest
from mmengine.config import Config

from vssm.engine import ConfigError
from vssm.engine.config import load_config
from vssm.engine.run import parse_options
from vssm.engine.sections import check_sections

from .conftest import REPO
from .test_tools import sentence, train_tool

CONFIG = REPO / "configs/classification/vmamba-pico_digits.py"


@pytest.fixture(scope="module")
def text():
    return load_config(str(CONFIG)).pretty_text


@pytest.fixture
def check(text):
    """Check the demonstration's config with options laid over it; returns the sentence, or an empty text."""

    def found(*words, **changes):
        cfg = Config.fromstring(text, ".py")
        cfg.merge_from_dict(parse_options(words))
        for name, section in changes.items():
            cfg[name] = section
        try:
            check_sections(cfg)
        except ConfigError as error:
            return str(error)
        return ""

    return found


def test_a_sound_config_passes(check):
    assert check() == ""
    assert check("train_cfg.val_interval=2", "default_hooks.checkpoint.by_epoch=True", "custom_hooks=[]") == ""


@pytest.mark.parametrize(
    ("word", "said"),
    {
        "train_cfg.max_epoch=1": "train_cfg has the option 'max_epoch', .* EpochBasedTrainLoop .*'max_epochs'",
        "val_cfg.fp=True": "val_cfg has the option 'fp', .* ValLoop .*'fp16'",
        "train_dataloader.batchsize=4": "train_dataloader has the option 'batchsize', .*'batch_size'",
        "train_dataloader.sampler.shufle=True": "train_dataloader.sampler .*'shufle'.*'shuffle'",
        "val_dataloader.dataset.splitt=test": "val_dataloader.dataset .*'splitt'.*'split'",
        "optim_wrapper.acumulative_counts=2": "optim_wrapper .*'accumulative_counts'",
        "optim_wrapper.optimizer.learning_rate=0.1": "optim_wrapper.optimizer .*'learning_rate'.* AdamW",
        "optim_wrapper.clip_grad.max_nrm=1": "optim_wrapper.clip_grad .*'max_norm'",
        "param_scheduler.0.gama=0.5": "param_scheduler.0 .*'gama'.* LinearLR",
        "default_hooks.logger.intervall=5": "default_hooks.logger .* LoggerHook .*'interval'",
        "default_hooks.checkpont.interval=1": "default_hooks.checkpont has no type .*'checkpoint'",
        "test_evaluator.topkk=1": "test_evaluator .* Accuracy .*'topk'",
        "log_processor.window=1": "log_processor .*'window'",
        "visualizer.vis_backends.0.savedir=x": "visualizer.vis_backends.0 .*'save_dir'",
        "env_cfg.cudnn_bench=True": "env_cfg .*'cudnn_benchmark'",
        "env_cfg.mp_cfg.start=fork": "env_cfg.mp_cfg .*'start'",
        "randomness.sed=1": "randomness .*'seed'",
        "train_cfg.max_epochs=-1": r"train_cfg.max_epochs must be a whole number of at least 1, not -1\.",
        "train_cfg.max_epochs=many": "at least 1, not 'many'",
        "train_cfg.val_interval=0": "train_cfg.val_interval must be .* at least 1",
        "train_dataloader.batch_size=0": "train_dataloader.batch_size must be .* at least 1, not 0",
        "val_dataloader.num_workers=-1": "val_dataloader.num_workers must be .* at least 0",
        "default_hooks.checkpoint.interval=1.5": "default_hooks.checkpoint.interval must be a whole number",
        "optim_wrapper.optimizer.lr=-1": "optim_wrapper.optimizer.lr must be a number of at least 0, not -1",
    }.items(),
)
def test_typing_mistakes(check, word, said):
    assert re.search(said, check(word)), check(word)


@pytest.mark.parametrize(
    ("word", "said"),
    {
        "model.model.num_classes=3.0": "model.model.num_classes must be a whole number of at least 0, not 3.0",
        "val_evaluator.topk=5": "val_evaluator.topk must be a list of whole numbers of at least 1, not 5",
        "randomness.seed=abc": "randomness.seed must be a whole number from 0 .* not 'abc'",
        "train_dataloader.dataset.transform.input_size=[32]": r"input_size must be a whole number .* not \[32\]",
    }.items(),
)
def test_values_that_other_libraries_would_refuse(check, word, said):
    assert re.search(said, check(word))


def test_the_kind_of_loop_is_said_once(check):
    assert "needs by_epoch" in check(train_cfg={"max_epochs": 1})
    both = {"type": "EpochBasedTrainLoop", "by_epoch": True, "max_epochs": 1}
    assert "both by_epoch and the type EpochBasedTrainLoop" in check(train_cfg=both)


def test_bases_and_wrapped_data_are_looked_into(check):
    wrapped = {"type": "RepeatDataset", "times": 2, "dataset": {"type": "ImageFolder", "rooot": "x"}}
    assert "train_dataloader.dataset.dataset has the option 'rooot'" in check(train_dataloader={"dataset": wrapped})
    decay = {"optimizer": {"type": "SGD", "lr": 1}, "paramwise_cfg": {"norm_decay_mul": 0}}
    assert "'norm_decay_mult'" in check(optim_wrapper=decay)
    amp = {"type": "AutoAmpOptimWrapper", "optimizer": {"type": "SGD", "lr": 1}, "clip_gradd": {}}
    assert "'clip_grad'" in check(optim_wrapper=amp)
    # Keywords that go on to somewhere else are anyone's guess.
    assert check(custom_hooks=[{"type": "EMAHook", "gamma": 100}]) == ""


def test_tools_say_it_before_anything_is_made(tmp_path, capsys):
    words = [CONFIG, "--work-dir", tmp_path / "wd", "--cfg-options"]
    said = sentence(capsys, train_tool, *words, "default_hooks.checkpoint.intervall=5")
    assert "'intervall'" in said and "did you mean 'interval'" in said
    assert not (tmp_path / "wd").exists()
    # What a constructor refuses is found when it is called.
    said = sentence(capsys, train_tool, *words, "param_scheduler.0.start_factor=7")
    assert "The config cannot be built: " in said and "between 0 and 1" in said


@pytest.mark.parametrize(
    "words",
    [
        ["train_dataloader.dataset._delete_=True", "train_dataloader.dataset.type=os.system"],
        ["default_hooks.x.type=subprocess.Popen"],
        ["optim_wrapper.constructor=os.system"],
        ["optim_wrapper.optimizer.type=torch.os.system"],
        ["model.type=mmengine.os.system"],
        ["model.type=torch.hub.load"],
        ["model.type=vssm.engine.run.train"],
        ["custom_hooks.0.ema_type=os.system"],
    ],
)
def test_options_name_no_other_functions(words, tmp_path, capsys):
    mark = tmp_path / "EXECUTED"
    options = [*words, f"{words[-1].partition('=')[0].rpartition('.')[0] or 'model'}.command=touch\t{mark}"]
    said = sentence(capsys, train_tool, CONFIG, "--work-dir", tmp_path / "wd", "--cfg-options", *options)
    assert words[-1].partition("=")[2] in said and "neither registered nor a class of a known package" in said
    assert not mark.exists() and not (tmp_path / "wd").exists()


def test_classes_of_known_packages_and_of_imported_ones_may_be_named(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "mine.py"

    def load(text):
        config.write_text(text)
        return load_config(str(config))

    load("model = dict(type='torch.nn.Linear', norm=dict(type='timm.layers.LayerNorm2d'))")
    load("model = dict(wrap=dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy'))")
    load("from torch.nn import Linear\nmodel = dict(type=Linear)")
    with pytest.raises(ConfigError, match="model.type is 'my_parts.Mine'"):
        load("model = dict(type='my_parts.Mine')")
    load("custom_imports = dict(imports=['my_parts'])\nmodel = dict(type='my_parts.Mine')")
    with pytest.raises(ConfigError, match="cannot set 'custom_imports.imports'"):
        load_config(str(config), {"custom_imports.imports": ["os"]})


def test_registries_look_up_nothing_else_while_something_is_built():
    from mmengine.registry import MODELS

    from vssm.engine.config import explain_config_mistakes

    with pytest.raises(ConfigError, match="os.system is not in the"), explain_config_mistakes():
        MODELS.build({"type": "os.system", "command": "true"})
