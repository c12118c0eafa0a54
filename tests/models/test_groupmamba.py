"""GroupMamba beyond its parity vectors."""

import pytest
import timm
import torch
from timm.models import group_parameters

from vssm.models.groupmamba import FAMILY

from .tester import FamilyTester, Official

PICO = "groupmamba_pico"


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


class TestGroupMamba(FamilyTester):
    family = FAMILY
    parameters = {
        "groupmamba_tiny": 23_361_917,
        "groupmamba_small": 34_781_555,
        "groupmamba_base": 57_150_838,
        "groupmamba_pico": 391_787,
    }
    tiny = Official("groupmamba", "groupmamba_tiny", "groupmamba_tiny")
    checkpoints = {"tiny": tiny}
    missing = [
        ("tiny", "block2.0.mlp.fc1.weight", "missing stages.1.blocks.0.mlp.fc1.weight; unexpected none"),
        (
            "tiny",
            "post_network.0.attn.mamba_g3.in_proj.weight",
            "missing class_block.mixer.in_proj_weight; unexpected class_block.mixer.mamba_g1.in_proj_weight",
        ),
    ]
    misfits = [("tiny", dict(dims=(64, 128, 352, 448)), ("GroupMamba", "missing stages.2", "wrong shape"))]
    by_hand = {
        "groupmamba_tiny": "1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o",
        "groupmamba_small": "",
        "groupmamba_base": "",
    }
    refused = [
        (PICO, dict(global_pool="max"), ("'avg'", "'max'")),
        (PICO, dict(global_pool=""), ("1000 classes", "''")),
        (PICO, dict(dims=(16, 32, 62, 64)), ("4 routes", "16", "62")),
    ]

    @pytest.mark.parametrize(
        ("name", "whole", "one_head", "trunk"),
        [
            ("groupmamba_tiny", 23.362, 22.913, 20.462),
            ("groupmamba_small", 34.782, 34.269, 31.143),
            ("groupmamba_base", 57.151, 56.638, 53.513),
        ],
    )
    def test_parameters_of_the_parts(self, name, whole, one_head, trunk):
        """Millions; the trunk has neither class block nor classifiers, but all four norms."""
        model = timm.create_model(name, device="meta")
        assert round(count(model.parameters()) / 1e6, 3) == whole
        assert (
            round(count(timm.create_model(name, device="meta", distillation=False).parameters()) / 1e6, 3) == one_head
        )
        backbone = timm.create_model(name, device="meta", features_only=True)
        assert round((count(backbone.parameters()) + count(model.norm.parameters())) / 1e6, 3) == trunk
        # The official layout has the groups apart: 4 x 10 tensors a mixer where there are 10 here.
        mixers = sum(n.endswith(".skip_scale") for n, _ in model.named_parameters())
        official = {"groupmamba_tiny": 1266, "groupmamba_small": 1693, "groupmamba_base": 2120}
        assert len(model.state_dict()) + 3 * 11 * mixers == official[name]

    def test_two_epsilons(self):
        model = timm.create_model(PICO, device="meta")
        small = {n for n, m in model.named_modules() if getattr(m, "eps", None) == 1e-6}
        blocks = {f"stages.{i}.blocks.{j}.norm" for i, depth in enumerate((1, 1, 2, 1)) for j in range(depth)}
        ends = {"stages.0.norm", "stages.1.norm", "stages.2.norm", "norm", "class_block.norm1", "class_block.norm2"}
        assert small == blocks | ends
        assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5, 1e-6}

    def test_distilled_training(self):
        torch.manual_seed(0)
        model, x = timm.create_model(PICO, num_classes=5), torch.randn(2, 3, 48, 64)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.eval()  # so that both modes see the same statistics
        assert model(x).shape == (2, 5)  # as timm's models, until distillation is asked for
        model.set_distilled_training(True)
        y, y_dist = model(x)
        assert y.shape == y_dist.shape == (2, 5) and not torch.allclose(y, y_dist)
        model.set_distilled_training(False)
        assert torch.equal(model(x), (y + y_dist) / 2)
        model.set_distilled_training(True)
        assert torch.equal(model.eval()(x), (y + y_dist) / 2)
        assert model.get_classifier() == (model.head, model.dist_head)

    def test_one_head(self):
        model = timm.create_model(PICO, num_classes=5, distillation=False)
        x = torch.randn(2, 3, 48, 64)
        assert model(x).shape == (2, 5) and model.get_classifier() is model.head
        assert not [n for n, _ in model.named_parameters() if n.startswith("dist_head")]
        model.reset_classifier(7)
        assert model(x).shape == (2, 7) and model.dist_head is None

    def test_no_classes_and_no_pooling(self):
        model, x = timm.create_model(PICO), torch.randn(2, 3, 64, 96)
        model.reset_classifier(0)
        features = model.eval()(x)
        assert features.shape == (2, 64)
        assert torch.equal(features, model.forward_head(model.forward_features(x), pre_logits=True))
        assert model.train()(x).shape == (2, 64)  # nothing for a teacher to teach
        model.eval().reset_classifier(0, "")
        assert torch.equal(model(x), model.norm(model.forward_features(x)))
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3) and not model.head.training and not model.dist_head.training

    @torch.no_grad()
    def test_features(self):
        """Stages 1 to 3 give normalised maps; the last map is raw, and normalised if asked for."""
        torch.manual_seed(0)
        model, x = timm.create_model(PICO).eval(), torch.randn(1, 3, 75, 101)
        last, maps = model.forward_intermediates(x, output_fmt="NHWC")
        assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(x))
        normed = model.forward_intermediates(x, norm=True, output_fmt="NHWC", intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(maps[:3], normed[:3], strict=True))
        assert torch.equal(normed[3], model.norm(maps[3]))
        for m in normed:
            assert m.mean(-1).abs().max() < 1e-5
        assert [tuple(m.shape[1:3]) for m in maps] == [(19, 26), (10, 13), (5, 7), (3, 4)]

    def test_features_leave_the_head_out(self):
        model = timm.create_model(PICO, features_only=True, out_indices=(0, 3))
        names = {n.split(".")[1] for n, _ in model.named_parameters()}
        assert names == {"stem", "stages"}
        maps = model(torch.randn(1, 3, 64, 64))
        sum(m.square().mean() for m in maps).backward()
        # The last map wants the norms of the stages before it.
        assert [n for n, p in model.named_parameters() if p.grad is None] == []

    def test_stage_norm_is_grouped_with_its_last_block(self):
        model = timm.create_model(PICO, device="meta")
        groups = group_parameters(model, model.group_matcher(), reverse=True)
        assert groups["stages.2.norm.weight"] == groups["stages.2.blocks.1.norm.weight"]
        assert groups["stages.0.norm.weight"] < groups["norm.weight"] <= groups["class_block.norm1.weight"]

    def test_initial_parameters(self):
        torch.manual_seed(0)
        model = timm.create_model(PICO)
        dwconv = model.stages[3].blocks[0].mlp.dwconv
        assert abs(dwconv.weight.std() - (2 / 9) ** 0.5) < 0.03 and (dwconv.bias == 0).all()
        assert abs(model.stem.conv2.conv.weight.std() - (2 / (9 * 16)) ** 0.5) < 0.01
        assert abs(model.stages[3].downsample.conv.weight.std() - (2 / (9 * 64)) ** 0.5) < 0.005
        mixer = model.stages[3].blocks[0].mixer
        assert abs(mixer.conv.weight.std() - (2 / 9) ** 0.5) < 0.05 and (mixer.conv.bias == 0).all()
        assert abs(mixer.proj.weight.std() - 0.02) < 2e-3 and (mixer.proj.bias == 0).all()
        assert mixer.skip_scale.item() == 1 and (mixer.A_logs == 0).all() and (mixer.Ds == 1).all()
        rates = [getattr(b.drop_path, "drop_prob", 0) for s in model.stages for b in s.blocks]
        assert rates == [0] * 5
        model = timm.create_model(PICO, drop_path_rate=0.4, device="meta")
        rates = [getattr(b.drop_path, "drop_prob", 0) for s in model.stages for b in s.blocks]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])

    def test_stacking(self):
        weights, ours = self.tiny.weights(), self.tiny.convert(self.tiny.weights())
        group = "block3.0.attn.mamba_g{}."
        mixer = "stages.2.blocks.0.mixer."
        for k in range(4):
            old, part = group.format(k + 1), slice(87 * k, 87 * (k + 1))
            for name in ("in_proj", "out_proj"):
                assert torch.equal(ours[f"{mixer}{name}_weight"][k], weights[f"{old}{name}.weight"])
            for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
                assert torch.equal(ours[mixer + name][k], weights[old + name][0])
            for name in ("A_logs", "Ds", "out_norm.weight", "out_norm.bias"):
                assert torch.equal(ours[mixer + name][part], weights[old + name])
            assert torch.equal(ours[f"{mixer}conv.weight"][part], weights[f"{old}conv2d.weight"])

    def test_one_head_takes_a_distilled_checkpoint(self):
        both, one = self.tiny.convert(self.tiny.weights()), self.tiny.convert(self.tiny.weights(), distillation=False)
        assert both.keys() - one.keys() == {"dist_head.weight", "dist_head.bias"}
