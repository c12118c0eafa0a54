"""MSVMamba against the numbers of the official models."""

from vssm.models.msvmamba import FAMILY

from .parity_tester import ParityTester

UNIT = dict(dims=16, depths=(1, 2, 1, 1), num_classes=10)


class TestMSVMamba(ParityTester):
    family = FAMILY
    files = ("msvmamba",)
    models = {
        "_unit_v1": ("msvmamba_nano", UNIT),
        "_unit_v3_noz": ("msvmambav3_tiny", UNIT),
        "_unit_v3_z": ("msvmambav3_base", UNIT),
    }
    output, gradient = 1e-5, 1e-4
