"""VMamba beyond its parity vectors."""

from vssm.models.vmamba import FAMILY

from .official_layouts import early_names, linear_layers_as_convolutions, one_file, one_file_of_patch_merging
from .tester import FamilyTester, Official


class TestVMamba(FamilyTester):
    family = FAMILY
    checkpoints = {
        "present": Official("vmamba", "vmamba_tiny_s1l8"),
        "vanilla": Official("vmamba", "vanilla_vmamba_tiny"),
    }
    layouts = [
        ("present", linear_layers_as_convolutions),
        ("present", one_file),
        ("vanilla", one_file_of_patch_merging),
        ("vanilla", early_names),
    ]
    refused = [
        ("vmamba_pico", dict(scan="zigzag"), ("cross", "unidirectional", "bidirectional", "cascade", "'zigzag'")),
        ("vmamba_tiny_m2", dict(gate=True), ("gate",)),
        ("vmamba_tiny_m2", dict(scan="cascade"), ("cascade",)),
    ]
