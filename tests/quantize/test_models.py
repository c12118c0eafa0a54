"""Whole models by recipes: how near they stay, what they keep in float, and the file that they go to."""

import copy

import pytest
import timm
import torch
from torch import nn

import vssm.quantize.recipes as recipes
from tests.small import few_blocks
from vssm.quantize import (
    Plan,
    QuantizeError,
    QuantLinear,
    TokenQuantizer,
    calibrate,
    learn_blocks,
    load_quantized,
    mixers_with_points,
    quantised_blocks,
    quantize_model,
    report,
    save_quantized,
)


@pytest.fixture(autouse=True)
def pytorchs_kernels(monkeypatch):
    """Whether torchao is installed or not, its own test aside."""
    found = recipes.importlib.util.find_spec
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))


def small(name: str, classes: int = 10, **options) -> nn.Module:
    """A model with weights that let the mixers speak."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **few_blocks(name), **options).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def images(model: nn.Module, count: int = 2) -> torch.Tensor:
    size = model.pretrained_cfg["input_size"] if model.pretrained_cfg.get("fixed_input_size") else (3, 64, 64)
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def deviation(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    wanted = model(x)
    return float((other(x) - wanted).norm() / wanted.norm())


RECIPES = {
    "int8-dynamic": ("int8-dynamic", {}),
    "w8a8": ("w8a8", {}),
    "w8a8-hadamard": ("w8a8", {"hadamard": True}),
    "ptq4vm": ("ptq4vm", {"epochs": 1}),
    "ptq4vm-8": ("ptq4vm", {"epochs": 0, "weight_bits": 8, "input_bits": 8}),
}
LIMITS = {"int8-dynamic": 0.1, "w8a8": 0.1, "w8a8-hadamard": 0.1, "ptq4vm": 0.7, "ptq4vm-8": 0.05}


@pytest.mark.parametrize("key", RECIPES)
def test_recipes_stay_near_and_come_back_from_their_files(key, tmp_path):
    recipe, options = RECIPES[key]
    model = small("vmamba_pico")
    x, before = images(model), copy.deepcopy(model.state_dict())
    quantized = quantize_model(model, recipe, x, **options)
    assert 1e-4 < deviation(model, quantized, x) < LIMITS[key]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in before.items():
        if name.endswith(("A_logs", "Ds", "dt_projs_bias", "norm.weight", "conv.weight")):
            assert torch.equal(quantized.state_dict()[name], value), name
    path = tmp_path / "small.safetensors"
    save_quantized(quantized, path, {"recipe": recipe})
    again = load_quantized(small("vmamba_pico"), path)
    with torch.no_grad():
        torch.testing.assert_close(again(x), quantized(x), rtol=1e-5, atol=1e-5)
    whole = sum(value.nbytes for value in before.values())
    assert path.stat().st_size < (0.45 if recipe == "ptq4vm" and key == "ptq4vm" else 0.55) * whole
    rows = report(model, quantized, x, runs=1)
    assert {type(quantized.get_submodule(row.name)).__name__ for row in rows} >= {
        type(module).__name__ for module in quantized.modules() if isinstance(module, QuantLinear)
    }
    assert all(row.noise_ratio > 3 for row in rows) and 0 < sum(row.time_share for row in rows) < 1


def test_every_mixer_with_points_is_observed_at_them():
    """Also where one operator could stand for several. The state of Spatial-Mamba is read elsewhere, so not by C."""
    families = ("vim_pico", "msvmamba_pico", "spatialmamba_pico", "groupmamba_pico", "plainmamba_pico", "vssd_pico")
    for name, options in [*((name, {}) for name in families), ("vmamba_pico", dict(ssd=True, d_state=8))]:
        model = small(name, **options)
        quantized = quantize_model(model, "w8a8", images(model))
        mixers = mixers_with_points(quantized)
        assert mixers and deviation(model, quantized, images(model)) < 0.2
        for mixer in mixers.values():
            points = {*mixer.quant_points, *(["dt_weight"] if hasattr(mixer, "dt_projs_weight") else [])}
            points |= {f"{weight}{end}" for weight in getattr(mixer, "quant_weights", ()) for end in ("", "_input")}
            assert set(mixer.quantizers) == points - ({"C"} if name == "spatialmamba_pico" else set()), name


@pytest.mark.parametrize(
    ("name", "weights"),
    [("vim_pico", ["x_proj"]), ("groupmamba_pico", ["in_proj", "x_proj", "out_proj"])],
)
@pytest.mark.parametrize("recipe", ["w8a8", "ptq4vm"])
def test_projections_that_are_no_linear_layers(name, weights, recipe, tmp_path):
    """Few values for each output channel of their weights, rounded inputs, and both come back from files."""
    model = small(name)
    x = images(model)
    quantized = quantize_model(model, recipe, x, epochs=1)
    for mixer in mixers_with_points(quantized).values():
        for weight in weights:
            values = getattr(mixer, f"{weight}_weight").flatten(0, -2)
            assert all(len(row.unique()) <= (256 if recipe == "w8a8" else 16) for row in values)
    path = tmp_path / "small.safetensors"
    save_quantized(quantized, path)
    with torch.no_grad():
        want = quantized(x)
        torch.testing.assert_close(load_quantized(small(name), path)(x), want, rtol=1e-5, atol=1e-5)
        for weight in weights:
            coarse = copy.deepcopy(quantized)
            for mixer in mixers_with_points(coarse).values():
                for parameter in mixer.quantizers[f"{weight}_weight_input"].state_dict().values():
                    parameter.mul_(16)
            assert not torch.allclose(coarse(x), want, rtol=1e-3, atol=1e-3), weight


def test_the_state_of_all_tokens_reads_what_was_rounded():
    model = small("vssd_pico")
    x = images(model)
    coarse = quantize_model(model, "w8a8", x)
    fine = deviation(model, coarse, x)
    for mixer in mixers_with_points(coarse).values():
        mixer.quantizers["u"].scale.mul_(64)
    assert deviation(model, coarse, x) > 3 * fine


def test_a_sequence_is_quantised_alike_with_and_without_a_graph():
    """Steps are found without one, where a float mixer may run as one operator, and learned with one."""
    model = small("vim_pico")
    x = images(model)
    quantized = calibrate(model, Plan(), [x])
    recorded = quantized(x.clone().requires_grad_())
    assert recorded.grad_fn is not None
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), recorded)


def test_finer_steps_are_nearer():
    model = small("vmamba_pico")
    x = images(model)
    found = [deviation(model, quantize_model(model, "w8a8", x, weight_bits=b, input_bits=b), x) for b in (4, 6, 8)]
    assert found[0] > 2 * found[1] > 4 * found[2]


def test_the_scan_reads_what_was_rounded():
    model = small("vmamba_pico")
    x = images(model)
    coarse = quantize_model(model, "w8a8", x)
    for mixer in mixers_with_points(coarse).values():
        mixer.quantizers["u"].scale.mul_(64)
    assert deviation(model, coarse, x) > 3 * deviation(model, quantize_model(model, "w8a8", x), x)


def test_learning_comes_nearer_block_by_block():
    model = small("vmamba_pico")
    x = images(model, 4)
    quantized = calibrate(model, Plan(4, 4, per_token=True, scans=False, search=True), [x])
    losses = learn_blocks(model, quantized, [x], epochs=3, smoothing_lr=1e-2)
    assert list(losses) == quantised_blocks(quantized) and len(losses) == len(model.stages)
    assert all(after <= before for before, after in losses.values())
    assert sum(after for _, after in losses.values()) < sum(before for before, _ in losses.values())


def test_steps_of_tokens_are_for_one_size():
    model = small("vmamba_pico")
    quantized = quantize_model(model, "ptq4vm", images(model), epochs=0)
    assert isinstance(quantized.head.fc, nn.Linear)
    assert any(isinstance(module, TokenQuantizer) for module in quantized.modules())
    with pytest.raises(QuantizeError, match="calibrated for maps of 16x16 positions, not 24x24"):
        quantized(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("recipe", "options", "sentence"),
    [
        ("w8a", {}, "did you mean 'w8a8'"),
        ("w8a8", {"calibration": None}, "needs calibration images"),
        ("w8a8", {"calibration": []}, "at least one batch"),
        ("w8a8", {"weight_bits": 9}, "from 2 to 8, not 9"),
        ("w8a8", {"clip": 0.0}, "clip above 0"),
        ("int8-dynamic", {"hadamard": True}, "no rotation"),
        ("ptq4vm", {"hadamard": True}, "no rotation"),
    ],
)
def test_mistakes(recipe, options, sentence):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(QuantizeError, match=sentence):
        quantize_model(model, recipe, **({"calibration": torch.zeros(1, 3, 8, 8)} | options))


def test_files_of_others_are_refused(tmp_path):
    model = small("vmamba_pico")
    save_quantized(quantize_model(model, "w8a8", images(model)), tmp_path / "a.safetensors")
    with pytest.raises(QuantizeError, match="does not fit VMamba"):
        load_quantized(small("vmamba_pico", classes=3), tmp_path / "a.safetensors")
    with pytest.raises(QuantizeError, match="cannot be read"):
        load_quantized(model, tmp_path / "b.safetensors")
    with pytest.raises(QuantizeError, match="no quantised layer"):
        save_quantized(model, tmp_path / "c.safetensors")
