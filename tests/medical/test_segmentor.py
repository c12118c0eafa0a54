"""The networks as an mmengine model."""

import pytest
import torch
from mmengine.registry import MODELS
from torch.utils.data import DataLoader

from vssm.engine import ConfigError
from vssm.engine.checks import check_run
from vssm.engine.classifier import ModelError
from vssm.engine.optim import TimmOptimWrapperConstructor
from vssm.medical.data import NiftiFolder
from vssm.medical.patches import VolumePatches
from vssm.medical.segmentor import NETWORKS, UNetSegmentor, create_network

from .conftest import write_nifti_folder

SMALL = dict(decoder="msvm", encoder="vmamba_pico", num_classes=3)


@MODELS.register_module(name="TestPixelCrossEntropy", force=True)
class PixelCrossEntropy(torch.nn.CrossEntropyLoss):
    pass


@MODELS.register_module(name="TestTwoTerms", force=True)
class TwoTerms(torch.nn.Module):
    def forward(self, output, label):
        return dict(loss_a=output.mean() + 0 * label.sum(), loss_b=output.square().mean())


def build(loss="TestPixelCrossEntropy", **network) -> UNetSegmentor:
    torch.manual_seed(0)
    return MODELS.build(dict(type="UNetSegmentor", network={**SMALL, **network}, loss=dict(type=loss)))


def batch(classes: int = 3) -> dict:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 40, 48, generator=g)
    return dict(image=image, label=(image[:, 0] > 0).long() * (classes - 1), case=["a", "b"])


def test_training_step_lowers_the_loss():
    model, data = build(), batch()
    optimizer = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.01))
    wrapper = TimmOptimWrapperConstructor(optimizer)(model)
    losses = [model.train_step(data, wrapper)["loss"].item() for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    decay = {id(p): group["weight_decay"] for group in wrapper.param_groups for p in group["params"]}
    rates = {n.rpartition(".")[2]: decay[id(p)] for n, p in model.model.named_parameters()}
    assert rates["A_logs"] == 0 and rates["dt_projs_weight"] == 0.01


def test_terms_of_a_loss_are_kept():
    losses = build("TestTwoTerms")(**batch(), mode="loss")
    assert set(losses) == {"loss_a", "loss_b"}


def test_prediction_of_several_classes():
    model, data = build().eval(), batch()
    with torch.no_grad():
        answers, logits = model.val_step(data), model(data["image"])
        probabilities = model.probabilities(data["image"])
    for answer, one, label in zip(answers, logits, data["label"], strict=True):
        assert torch.equal(answer["prediction"], one.argmax(0)) and answer["prediction"].dtype == torch.int64
        assert torch.equal(answer["label"], label)
    assert torch.allclose(probabilities, logits.softmax(1))
    assert "label" not in model(data["image"], mode="predict")[0]


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_prediction_of_one_class(activation):
    model = build(num_classes=1, activation=activation).eval()
    model.threshold = 0.6
    image = batch()["image"]
    with torch.no_grad():
        output = model(image)
        probability = output if activation else output.sigmoid()
        got = torch.stack([answer["prediction"] for answer in model(image, mode="predict")])
    assert torch.equal(got, (probability[:, 0] >= 0.6).long())


def test_weights_survive_the_start_of_training():
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_network_by_name():
    unets = {"msvm_unet_tiny", "msvm_unet_small", "vm_unet", "mhs_unet_3head", "mhs_unet_4head"}
    assert {"create_unet", "hymamba"} | unets == set(NETWORKS)
    assert create_network("mhs_unet_3head", embed_dim=16, num_classes=4).num_classes == 4


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (dict(name="vmunet"), "There is no network 'vmunet' .did you mean 'vm_unet'"),
        (dict(name="vm_unet", depth=3), r"'vm_unet' does not take all of the options \['depth'\]"),
        (dict(name="mhs_unet_4head", depth=3), r"'mhs_unet_4head' does not take all of the options \['depth'\]"),
        (dict(decoder="vmm"), "cannot be built: decoder must be one of"),
        (dict(name="vm_unet", pretrained="none.pth"), "cannot be built: Checkpoint 'none.pth' does not exist"),
    ],
)
def test_mistakes_in_a_config(network, message):
    with pytest.raises(ModelError, match=message):
        UNetSegmentor(network)


def test_modes():
    model, data = build(), batch()
    with pytest.raises(ValueError, match="mode 'loss' needs labels"):
        model(data["image"], mode="loss")
    with pytest.raises(ValueError, match="mode 'loss' needs a loss in the config"):
        UNetSegmentor(SMALL)(**data, mode="loss")
    with pytest.raises(ValueError, match="mode must be 'tensor', 'loss' or 'predict', not 'train'"):
        model(data["image"], mode="train")


def test_networks_and_data_of_other_classes(tmp_path):
    root = str(write_nifti_folder(tmp_path / "a", splits=("test",)))
    three, two = (NiftiFolder(root, "test", ("background", "liver", "tumour")[:count]) for count in (3, 2))
    patches = VolumePatches(three, (8, 8, 8), cache=False)
    for data in (three, patches):
        for outputs in (1, 2, 5):
            with pytest.raises(ConfigError) as error:
                check_run(build(num_classes=outputs), DataLoader(data), "train_dataloader")
            assert str(error.value) == (
                f"The data has 3 classes (background, liver, tumour), but the model {outputs}: say --cfg-options "
                "model.network.num_classes=3."
            )
        check_run(build(), DataLoader(data), "train_dataloader")
    for outputs in (1, 2):
        check_run(build(num_classes=outputs), DataLoader(two), "test_dataloader")
    with pytest.raises(ConfigError, match="2 classes .*, but the model 3"):
        check_run(build(), DataLoader(two), "test_dataloader")
