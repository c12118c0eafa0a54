"""VMamba against the numbers of the official model."""

from vssm.models.vmamba import FAMILY

from .parity_tester import ParityTester


class TestVMamba(ParityTester):
    family = FAMILY
    files = ("vmamba", "vmamba_modes")
    # What the official mode strings mean, in our arguments.
    models = {
        "tiny_s1l8_unidi(v051d_noz)": ("vmamba_tiny_s1l8", dict(scan="unidirectional")),
        "tiny_s1l8_bidi(v052d_noz)": ("vmamba_tiny_s1l8", dict(scan="bidirectional")),
        "tiny_s1l8_withz(v05)": ("vmamba_tiny_s1l8", dict(gate=True)),
        "tiny_2222_s1_N16_nodw_z(v05)": (
            "vmamba_tiny_s1l8",
            dict(depths=(2, 2, 2, 2), d_state=16, d_conv=0, gate=True),
        ),
    }
    output, gradient = 1e-5, 1e-4
