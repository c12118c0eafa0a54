"""Parameter groups, and the config reader."""

import re

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.visualization import Visualizer

from vssm._errors import MissingExtraError
from vssm._optional import require
from vssm.engine import ConfigError, Runner, TimmClassifier, load_config
from vssm.engine.run import parse_options
from vssm_kernels.install import how_to_install


def groups(paramwise_cfg, model="vmamba_pico"):
    classifier = TimmClassifier(dict(name=model, num_classes=10))
    wrapper = build_optim_wrapper(
        classifier,
        dict(
            type="OptimWrapper",
            constructor="TimmOptimWrapperConstructor",
            optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
            paramwise_cfg=paramwise_cfg,
        ),
    )
    names = {id(parameter): name for name, parameter in classifier.model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["weight_decay"], group["lr"], parameter.ndim)
    assert len(found) == len(names), "a parameter was lost"
    return found


def test_weight_decay_usual_and_official():
    usual, official = groups(None), groups(dict(model_no_weight_decay=False))
    for name, (decay, _, ndim) in official.items():
        assert (decay == 0) == (ndim <= 1 or name.endswith(".bias")), name
    freed = {name.rsplit(".", 1)[-1] for name in usual if usual[name][0] == 0 and official[name][0] != 0}
    # Table of the official behaviour: A and the dt bias are decayed there (two-dimensional, not called .bias).
    assert freed == {"A_logs", "dt_projs_bias"}
    assert all(usual[name][0] == 0 for name in official if official[name][0] == 0)


def test_weight_decay_of_d_in_the_ssd_form():
    official = groups(dict(model_no_weight_decay=False), "vmamba_tiny_m2")
    usual = groups(None, "vmamba_tiny_m2")
    skips = [name for name in official if name.endswith("Ds")]
    assert skips and all(official[name][0] == 0.05 and usual[name][0] == 0 for name in skips)


def test_weight_decay_spares_names():
    official, spared = (
        groups(dict(model_no_weight_decay=False, **more)) for more in ({}, dict(no_weight_decay=["A_logs"]))
    )
    changed = {name.rsplit(".", 1)[-1] for name in official if official[name] != spared[name]}
    assert changed == {"A_logs"} and all(spared[name][0] == 0 for name in spared if name.endswith("A_logs"))
    with pytest.raises(ConfigError, match="no_weight_decay names 'A_log', which the model lacks"):
        groups(dict(no_weight_decay=["A_log", "Ds"]))


def test_layer_decay():
    found = groups(dict(layer_decay=0.75))
    rates = {rate for _, rate, _ in found.values()}
    assert max(rates) == pytest.approx(1e-3) and len(rates) > 3
    head = [rate for name, (_, rate, _) in found.items() if name.startswith("head.fc")]
    stem = [rate for name, (_, rate, _) in found.items() if name.startswith("stem")]
    assert max(stem) < min(head) == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="unknown option 'layer_decai'.*'layer_decay'"):
        groups(dict(layer_decai=0.75))


def test_config_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.py' does not exist"):
        load_config("nowhere.py")
    (tmp_path / "bad.py").write_text("model = dict(\n")
    with pytest.raises(ConfigError, match="bad.py' does not parse: .* line 1"):
        load_config(str(tmp_path / "bad.py"))
    (tmp_path / "orphan.py").write_text('_base_ = ["absent.py"]\n')
    with pytest.raises(ConfigError, match="orphan.py.*absent.py"):
        load_config(str(tmp_path / "orphan.py"))
    (tmp_path / "good.py").write_text("train_cfg = dict(max_epochs=3)\n")
    assert load_config(str(tmp_path / "good.py"), {"train_cfg.max_epochs": 5}).train_cfg.max_epochs == 5
    with pytest.raises(ConfigError, match="'trian_cfg.max_epochs'.*'train_cfg'"):
        load_config(str(tmp_path / "good.py"), {"trian_cfg.max_epochs": 5})


def test_options_are_parsed_as_mmengine_does():
    words = ["a=1", "b=0.5", "c=[1,2]", "d=True", "e=None", "f=text", "g=(1,(2,3))"]
    expected = dict(a=1, b=0.5, c=[1, 2], d=True, e=None, f="text", g=(1, (2, 3)))
    assert parse_options(words) == expected
    for word in ("novalue", "=3", "x=[1,(2]"):
        with pytest.raises(ConfigError, match="--cfg-options"):
            parse_options([word])


def test_a_missing_extra_is_named():
    with pytest.raises(
        MissingExtraError, match=rf"^{re.escape('nowhere needs the [train] extra: ' + how_to_install('train'))}$"
    ):
        require("nowhere.module", "train")


def test_an_extra_whose_library_is_missing_says_so(tmp_path, monkeypatch):
    text = "libGL.so.1: cannot open shared object file"
    (tmp_path / "without_display.py").write_text(f"raise ImportError({text!r})")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=f"^without_display is installed but.*{text}.*opencv-python-headless"):
        require("without_display", "mm")


def test_a_second_run_of_a_process_logs_into_its_own_folder(tmp_path):
    """Also where both name their visualizer alike, as the configs of mm do."""
    found = []
    for name in ("first", "second"):
        runner = Runner.__new__(Runner)
        runner._experiment_name, runner._log_dir = name, str(tmp_path / name)
        backends = [dict(type="LocalVisBackend")]
        found.append(runner.build_visualizer(dict(type="Visualizer", name="visualizer", vis_backends=backends)))
        assert Visualizer.get_current_instance() is found[-1]
        found[-1].add_scalar("loss", 1.0)
        assert (tmp_path / name / "vis_data" / "scalars.json").is_file()
    assert found[0] is not found[1]
