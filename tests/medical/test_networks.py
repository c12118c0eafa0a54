"""Composition, sizes, checkpoints and errors of the medical networks; what they compute is in test_parity.py."""

import pytest
import timm
import torch
from monai.inferers import SlidingWindowInferer

from tests import parity
from vssm.layers import MixerBlock
from vssm.medical import create_unet, mhs_unet_3head, mhs_unet_4head, msvm_unet_tiny, vm_unet
from vssm.medical.checkpoint import checkpoint_filter_fn, imagenet_filter_fn, load_checkpoint
from vssm.medical.decoders.expand import channels_to_space
from vssm.medical.unet import DECODERS
from vssm.models import PlainBackbone, families

# Maps of plain nets all have one size, so they are refused below.
STAGED = [
    n for f in families() if not issubclass(f.models[0], PlainBackbone) for n in f.variants if n.endswith("_pico")
]
ENCODERS = [*STAGED, "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"]


def small(name: str):
    """The named networks, narrow."""
    return {
        "vm_unet": lambda: create_unet(
            "vm",
            "vmamba_tiny_v0",
            skip_stage_inputs=True,
            encoder_options=dict(embed_dim=16, depths=(1, 1, 1, 1)),
            depths=1,
        ),
        "mhs_unet_3head": lambda: mhs_unet_3head(embed_dim=16, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1)),
        "mhs_unet_4head": lambda: mhs_unet_4head(embed_dim=16, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1)),
    }[name]()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_under_any_decoder(encoder, decoder):
    torch.manual_seed(0)
    options = dict(img_size=64) if encoder.startswith("swin") else {}
    net = create_unet(decoder, encoder, num_classes=3, encoder_options=options)
    x = torch.randn(2, 1, 50, 64)
    logits = net(x)
    assert logits.shape == (2, 3, 50, 64)
    logits.square().sum().backward()
    unused = {n for n, p in net.named_parameters() if p.grad is None}
    assert not any(name.startswith(("decoder", "head")) for name in unused)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["vim_pico", "plainmamba_pico"])
def test_plain_encoders_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}.*strides \[16, 16, 16, 16\]"):
        create_unet("unet", name)


@pytest.mark.parametrize("name", ["vm_unet", "mhs_unet_3head", "mhs_unet_4head"])
@pytest.mark.parametrize("size", [(33, 47), (64, 96), (7, 5)])
def test_any_size(name, size):
    torch.manual_seed(0)
    net = small(name).eval()
    x = torch.randn(1, 3, *size)
    y = net(x)
    assert y.shape == (1, 1, *size)
    # The result is that of the image with its last row and column repeated, cropped.
    rows, columns = (-(-n // 32) * 32 for n in size)
    i, j = torch.arange(rows).clamp(max=size[0] - 1), torch.arange(columns).clamp(max=size[1] - 1)
    assert torch.allclose(y, net(x[:, :, i][..., j])[..., : size[0], : size[1]], atol=1e-6)


def test_one_channel_is_repeated():
    net = create_unet("unet", "vmamba_pico").eval()
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(net(x), net(x.repeat(1, 3, 1, 1)))
    assert create_unet("unet", "vmamba_pico", in_chans=4)(torch.randn(2, 4, 32, 32)).shape == (2, 1, 32, 32)


def test_activations():
    torch.manual_seed(0)
    net, x = create_unet("unet", "resnet18", num_classes=3).eval(), torch.randn(1, 3, 32, 32)
    logits = net(x)
    for name, want in (("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(1))):
        other = create_unet("unet", "resnet18", num_classes=3, activation=name).eval()
        other.load_state_dict(net.state_dict())
        assert torch.allclose(other(x), want)


def test_channels_to_space_has_space_as_the_slow_index():
    x = torch.arange(2 * 3 * 4 * 5.0).view(1, 2, 3, 20)
    y = channels_to_space(x, 2)
    assert y.shape == (1, 4, 6, 5)
    for p in range(2):
        for q in range(2):
            assert torch.equal(y[:, p::2, q::2], x[..., (2 * p + q) * 5 : (2 * p + q + 1) * 5])


@pytest.mark.parametrize("network", [msvm_unet_tiny, vm_unet])
def test_stochastic_depth_rises_in_the_encoder_and_falls_in_the_decoder(network):
    with torch.device("meta"):
        net = network()
    for part, ends in ((net.encoder, (0, 0.2)), (net.decoder, (0.2, 0))):
        rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in part.modules() if isinstance(m, MixerBlock)]
        assert rates == pytest.approx(torch.linspace(*ends, len(rates)).tolist())


def test_sliding_windows_of_monai():
    torch.manual_seed(0)
    net = create_unet("msvm", "vmamba_pico", num_classes=2).eval()
    image = torch.randn(1, 1, 70, 90)
    with torch.no_grad():
        one = SlidingWindowInferer(roi_size=(96, 96), mode="constant")(image, net)
        many = SlidingWindowInferer(roi_size=(48, 48), sw_batch_size=4, overlap=0.25, mode="gaussian")(image, net)
        tile = net(image[..., :48, :48])
    assert one.shape == many.shape == (1, 2, 70, 90)
    # The corner is in one window only.
    assert torch.allclose(many[..., :4, :4], tile[..., :4, :4], atol=1e-5)


@pytest.mark.parametrize("decoder", ["msvm", "vm"])
def test_exports(decoder):
    torch.manual_seed(0)
    net, x = create_unet(decoder, "vmamba_pico", num_classes=3).eval(), torch.randn(1, 1, 50, 64)
    assert torch.allclose(torch.export.export(net, (x,)).module()(x), net(x), atol=1e-5)


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def official(name: str) -> dict[str, torch.Tensor]:
    file, key = {
        "msvm": ("msvmunet", "msvmunet_tiny_synapse9"),
        "vm": ("vmunet", "vmunet_isic1"),
        "mhs": ("mhsvm", "mhsunet_4head_t0.0"),
    }[name]
    return parity.state_dict(parity.load(file)["variants"][key])


def test_layouts_of_msvm_unet(tmp_path):
    """A Lightning file that holds a loss besides the network, and one of a parallel run."""
    weights, net = official("msvm"), msvm_unet_tiny()
    want = checkpoint_filter_fn(weights, net)
    lightning = {f"_model.{k}": v for k, v in weights.items()} | {"loss.weight": torch.ones(9)}
    torch.save(dict(state_dict=lightning, epoch=259), tmp_path / "epoch.ckpt")
    load_checkpoint(net, tmp_path / "epoch.ckpt")
    assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    again = checkpoint_filter_fn({f"module.{k}": v for k, v in weights.items()}, net)
    assert all(torch.equal(v, want[k]) for k, v in again.items())


def test_layouts_of_vm_unet(tmp_path):
    """best.pth, latest.pth, and what our own training saves."""
    weights, net = official("vm"), vm_unet()
    want = checkpoint_filter_fn(weights, net)
    own = {f"model.{k}": v for k, v in want.items()}
    for checkpoint in (
        {k.removeprefix("vmunet."): v for k, v in weights.items()},
        dict(model_state_dict={f"module.{k}": v for k, v in weights.items()}, optimizer_state_dict={}, min_loss=0.1),
        dict(state_dict=own, meta={}, message_hub={}),
    ):
        torch.save(checkpoint, tmp_path / "x.pth")
        load_checkpoint(net, tmp_path / "x.pth")
        assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())


def test_layouts_of_mhs_unet():
    """With the counters of thop, and with either of the two names of a tensor alone."""
    weights, net = official("mhs"), mhs_unet_4head()
    want = checkpoint_filter_fn(weights, net)
    counters = {f"vmunet.{k}.total_ops": torch.zeros(1) for k in ("patch_embed", "layers.0")}
    for subset in (
        weights | counters | {"total_params": torch.zeros(1)},
        {k: v for k, v in weights.items() if ".mambaeng." not in k and not k.endswith("x_ssproj_W")},
    ):
        got = checkpoint_filter_fn(subset, net)
        assert got.keys() == want.keys() and all(torch.equal(v, want[k]) for k, v in got.items())
    other = {k: v for k, v in weights.items() if "seq2seq_engine" not in k and not k.endswith("x_ssproj.weight")}
    assert checkpoint_filter_fn(other, net).keys() == want.keys()
    with pytest.raises(ValueError, match=r"does not fit this UNet.*wrong shape"):
        checkpoint_filter_fn(weights, mhs_unet_3head())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(official("vm"), tmp_path / "vm.pth")
    with pytest.raises(ValueError, match="the checkpoint does not fit this UNet: missing"):
        load_checkpoint(msvm_unet_tiny(), tmp_path / "vm.pth")


def imagenet(name: str, **options) -> dict[str, torch.Tensor]:
    """Weights of a classifier of the first VMamba, under the official names of its time."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        own = timm.create_model(name, **options).state_dict()
    names = {}
    for key in own:
        parts = key.split(".")
        old = key.replace(".norm1.", ".ln_1.").replace(".mixer.", ".self_attention.").replace("stages.", "layers.")
        old = old.replace(".x_proj.weight", ".x_proj_weight").replace("self_attention.conv.", "self_attention.conv2d.")
        old = old.replace("stem.conv.", "patch_embed.proj.").replace("stem.norm.", "patch_embed.norm.")
        if "downsample" in key:
            old = old.replace(f"layers.{parts[1]}.", f"layers.{int(parts[1]) - 1}.")
        names[old.replace("head.fc.", "head.")] = torch.randn(own[key].shape, generator=generator)
    return names


def test_imagenet_weights_in_vm_unet(tmp_path):
    """Encoder and decoder blocks start from the first blocks of a deeper classifier; the rest stays as it was."""
    weights = imagenet("vmamba_tiny_v0", depths=(2, 2, 3, 2))
    torch.save(dict(model=weights), tmp_path / "vmamba.pth")
    torch.manual_seed(0)
    net = vm_unet(pretrained=tmp_path / "vmamba.pth").state_dict()
    assert torch.equal(
        net["encoder.backbone.stages.2.blocks.1.mixer.A_logs"], weights["layers.2.blocks.1.self_attention.A_logs"]
    )
    assert torch.equal(
        net["encoder.backbone.stages.1.downsample.norm.weight"], weights["layers.0.downsample.norm.weight"]
    )
    assert torch.equal(net["decoder.stages.1.blocks.0.norm1.bias"], weights["layers.2.blocks.0.ln_1.bias"])
    assert torch.equal(
        net["decoder.stages.3.blocks.0.mixer.in_proj.weight"],
        weights["layers.0.blocks.0.self_attention.in_proj.weight"],
    )
    taken = imagenet_filter_fn(weights, vm_unet())
    assert len(taken) == 117 + 91  # as many tensors as the official loader finds
    assert imagenet_filter_fn(weights, vm_unet(in_chans=1))["encoder.backbone.stem.conv.weight"].shape[1] == 1
    left = net.keys() - taken.keys()
    assert all("upsample" in name or name.startswith("head.") for name in left)


@pytest.mark.parametrize(
    "network",
    [vm_unet, msvm_unet_tiny, lambda **kw: create_unet("unet", "vmamba_tiny_v0", **kw)],
    ids=["vm", "msvm", "unet"],
)
def test_imagenet_weights_of_another_model_are_an_error(network, tmp_path):
    with torch.device("meta"):
        wrong = timm.create_model("vmamba_tiny_s2l5").state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in wrong.items()}, tmp_path / "s2l5.pth")
    with pytest.raises(ValueError, match="the checkpoint does not fit this"):
        network(pretrained=tmp_path / "s2l5.pth")
    with pytest.raises(FileNotFoundError, match="none.pth' does not exist"):
        network(pretrained=tmp_path / "none.pth")


def test_imagenet_weights_in_any_encoder(tmp_path):
    classifier = timm.create_model("vmamba_pico")
    torch.save(classifier.state_dict(), tmp_path / "pico.pth")
    net = create_unet("unet", "vmamba_pico", pretrained=tmp_path / "pico.pth")
    for name, value in net.encoder.backbone.model.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])


def test_imagenet_weights_that_timm_refuses(tmp_path):
    torch.save(timm.create_model("test_convnext2").state_dict(), tmp_path / "convnext.pth")
    with pytest.raises(ValueError, match="cannot be loaded into 'test_convnext': .*size mismatch"):
        create_unet("unet", "test_convnext", pretrained=tmp_path / "convnext.pth")
    (tmp_path / "convnext.pth").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="is truncated or not a PyTorch checkpoint"):
        create_unet("unet", "test_convnext", pretrained=tmp_path / "convnext.pth")


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(decoder="vmm"), r"decoder must be one of unet, msvm, vm, mhs, got 'vmm' \(did you mean 'vm'"),
        (dict(encoder="resnt18"), "timm knows no model 'resnt18' .did you mean 'resnet18'"),
        (dict(encoder="vit_tiny_patch16_224"), r"strides \[16, 16, 16\]; a decoder needs at least two"),
        (dict(encoder="resnet18", depth=3), r"'unet' does not take all of \['depth'\]"),
        (dict(encoder="resnet18", encoder_options=dict(depth=3)), "the encoder 'resnet18' does not take all of"),
        (dict(encoder="vssm_efficientvim_pico", skip_stage_inputs=True), "EfficientViM does not say what goes into"),
        (dict(encoder="resnet18", skip_stage_inputs=True), "does not say what goes into its stages"),
        (dict(encoder="resnet18", decoder_channels=(8, 8)), "decoder_channels needs 5 widths for this encoder"),
        (dict(decoder="vm", encoder="resnet18", depths=(2, 2)), "depths need 5 numbers for this encoder"),
        (dict(encoder="resnet18", activation="relu"), "activation must be None, 'sigmoid' or 'softmax', got 'relu'"),
        (dict(encoder="resnet18", num_classes=0), "num_classes must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        create_unet(**options)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 2, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes images \(B, 3, H, W\) or \(B, 1, H, W\), got"):
        create_unet("unet", "resnet18")(torch.zeros(shape))


def test_weight_decay_spares_the_state_space():
    net = create_unet("msvm", "vmamba_pico")
    spared, names = net.no_weight_decay(), {n for n, _ in net.named_parameters()}
    assert spared <= names
    assert {n for n in names if n.endswith(("A_logs", "Ds"))} <= spared
