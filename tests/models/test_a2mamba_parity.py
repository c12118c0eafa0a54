"""A2Mamba against the numbers of the official model."""

import pytest

from vssm.models.a2mamba import FAMILY

from .parity_tester import ParityTester

UNIT = dict(num_classes=10, img_size=96)


@pytest.mark.filterwarnings("ignore:the checkpoint has other values under rpb.0")
class TestA2Mamba(ParityTester):
    family = FAMILY
    files = ("a2mamba",)
    models = {
        "_unit": ("a2mamba_pico", UNIT),
        "_unit_res": ("a2mamba_pico", dict(UNIT, residual_scale=(None, None, 1.0, 1.0))),
        "_unit_ls": ("a2mamba_pico", dict(UNIT, layer_scale=(1.0, 1.0, 1e-6, 1e-6))),
        "_unit_norpb": ("a2mamba_pico", dict(UNIT, rel_pos_bias=False)),
        "_unit_gb": ("a2mamba_pico", UNIT),
    }
    output, gradient = 1e-4, 1e-3

    def case(self, key, where):
        """The records list the gradient of the bias table under the first of its names, its values under the second."""
        case = super().case(key, where)
        norms = {name.replace(".rpb.0", ".rpb.1"): norm for name, norm in case.get("grad_l2", {}).items()}
        return dict(case, grad_l2=norms) if norms else case
