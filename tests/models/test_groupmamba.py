"""GroupMamba beyond its parity vectors."""

import timm

from vssm.models.groupmamba import FAMILY

from .tester import AVERAGE_ONLY, FamilyTester, Official


class TestGroupMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"tiny": Official("groupmamba", "groupmamba_tiny")}
    refused = [
        *[("groupmamba_pico", *refused) for refused in AVERAGE_ONLY],
        ("groupmamba_pico", dict(dims=(16, 32, 62, 64)), ("4 routes", "16", "62")),
    ]

    def test_two_epsilons(self):
        """That of the block's parts is 1e-5; parity cannot tell the two apart."""
        model = timm.create_model("groupmamba_pico", device="meta")
        small = {n for n, m in model.named_modules() if getattr(m, "eps", None) == 1e-6}
        blocks = {
            f"stages.{i}.blocks.{j}.norm" for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))
        }
        ends = {"stages.0.norm", "stages.1.norm", "stages.2.norm", "norm", "class_block.norm1", "class_block.norm2"}
        assert small == blocks | ends and {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5, 1e-6}
