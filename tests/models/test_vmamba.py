"""VMamba beyond its parity vectors."""

import re

import pytest
import timm
import torch

from vssm.models.vmamba import FAMILY

from .tester import FamilyTester, Official


def linear_layers_as_convolutions(weights):
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2)\.weight$")
    return {k: v[:, :, None, None] if linear.search(k) else v for k, v in weights.items()}


def one_file(weights):
    """The layout of the official code's single file, which has the projections in one."""
    flat = {}
    for k, v in weights.items():
        k = k.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight")
        flat[k] = v.flatten(0, 1) if "x_proj." in k or "dt_projs.weight" in k else v
    return flat


def one_file_of_patch_merging(weights):
    names = {"downsample.norm.": "downsample.1.", "downsample.reduction.": "downsample.2."}
    return {re.sub("|".join(map(re.escape, names)), lambda m: names[m[0]], k): v for k, v in weights.items()}


def early_names(weights):
    early = {}
    for k, v in weights.items():
        k = k.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        k = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", k).replace(".op.", ".self_attention.")
        early[k.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.")] = v
    return early


RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/%23v"


class TestVMamba(FamilyTester):
    family = FAMILY
    parameters = {
        "vmamba_tiny_v0": 22_893_448,
        "vmamba_small_v0": 44_417_416,
        "vmamba_base_v0": 76_254_056,
        "vmamba_tiny_s2l5": 30_705_832,
        "vmamba_small_s2l15": 50_147_752,
        "vmamba_base_s2l15": 88_557_800,
        "vmamba_tiny_s1l8": 30_249_064,
        "vmamba_small_s1l20": 49_012_840,
        "vmamba_base_s1l20": 86_614_504,
        "vmamba_tiny_m2": 25_340_296,
        "vmamba_small_m2": 39_079_816,
        "vmamba_base_m2": 67_527_528,
        "vmamba_pico": 1_761_384,
    }
    checkpoints = {
        "present": Official("vmamba", "vmamba_tiny_s1l8", "vmamba_tiny_s1l8"),
        "vanilla": Official("vmamba", "vanilla_vmamba_tiny", "vmamba_tiny_v0"),
    }
    layouts = [
        ("present", linear_layers_as_convolutions),
        ("present", one_file),
        ("vanilla", one_file_of_patch_merging),
        ("vanilla", early_names),
    ]
    missing = [("present", "layers.2.blocks.0.op.A_logs", "missing stages.2.blocks.0.mixer.A_logs; unexpected none")]
    misfits = [("present", dict(dims=64), ("wrong shape", "instead of"))]
    urls = {
        "vmamba_tiny_v0": RELEASE + "0cls/vssmtiny_dp01_ckpt_epoch_292.pth",
        "vmamba_small_v0": RELEASE + "0cls/vssmsmall_dp03_ckpt_epoch_238.pth",
        "vmamba_base_v0": RELEASE + "0cls/vssmbase_dp06_ckpt_epoch_241.pth",
        "vmamba_tiny_s2l5": RELEASE + "2cls/vssm_tiny_0230_ckpt_epoch_262.pth",
        "vmamba_small_s2l15": RELEASE + "2cls/vssm_small_0229_ckpt_epoch_222.pth",
        "vmamba_base_s2l15": RELEASE + "2cls/vssm_base_0229_ckpt_epoch_237.pth",
        "vmamba_tiny_s1l8": RELEASE + "2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth",
        "vmamba_small_s1l20": RELEASE + "2cls/vssm1_small_0229s_ckpt_epoch_240.pth",
        "vmamba_base_s1l20": RELEASE + "2cls/vssm1_base_0229s_ckpt_epoch_225.pth",
    }
    by_hand = {f"vmamba_{size}_m2": "" for size in ("tiny", "small", "base")}
    refused = [
        ("vmamba_pico", dict(scan="zigzag"), ("cross", "unidirectional", "bidirectional", "cascade", "'zigzag'")),
        ("vmamba_tiny_m2", dict(gate=True), ("gate",)),
        ("vmamba_tiny_m2", dict(scan="cascade"), ("cascade",)),
        ("vmamba_pico", dict(dims=(8, 16)), ("(8, 16)", "(1, 1, 2, 1)")),
    ]
    precise = [dict(ssd=True, d_state=8), dict(scan="cascade"), dict(gate=True, d_state=4)]

    @torch.no_grad()
    def test_segmentation_models_encoder(self):
        smp = pytest.importorskip("segmentation_models_pytorch")
        net = smp.Unet("tu-vmamba_pico", encoder_weights=None, classes=3).eval()
        assert net(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_arguments_go_by_their_old_names():
    for name, old, new in (
        ("vmamba_pico", dict(embed_dim=16), dict(dims=16)),
        ("msvmamba_pico", dict(embed_dim=16, depths=(1, 1)), dict(dims=(16, 32), depths=(1, 1))),
        ("vssm_efficientvim_pico", dict(embed_dim=(16, 24, 32)), dict(dims=(16, 24, 32))),
        (
            "groupmamba_pico",
            dict(embed_dims=(16, 32, 64, 64), mlp_ratios=(2, 2, 2, 2)),
            dict(dims=(16, 32, 64, 64), mlp_ratio=(2, 2, 2, 2)),
        ),
    ):
        shapes = [
            {k: v.shape for k, v in timm.create_model(name, device="meta", **options).state_dict().items()}
            for options in (old, new, {})
        ]
        assert shapes[0] == shapes[1] != shapes[2]
