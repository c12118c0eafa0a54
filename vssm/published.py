"""What the authors of the models published, as printed. Nothing here was measured by this package."""

from dataclasses import dataclass

__all__ = ["NETWORKS", "PUBLISHED", "Published", "PublishedNetwork", "published"]


@dataclass(frozen=True)
class Published:
    """Figures of one training of a model, as strings so that the digits stay those that were printed.

    Attributes:
        params: Parameters in millions; empty where no printed figure is known.
        gflops: GFLOPs at the input size of the model's pretrained config.
        top1: Accuracy on ImageNet-1k's validation set, per cent.
        source: Where they were printed.
        not_reproduced: Why our count of the GFLOPs is another; empty where it is the same to the last printed digit.
    """

    params: str
    gflops: str
    top1: str
    source: str
    not_reproduced: str = ""


@dataclass(frozen=True)
class PublishedNetwork:
    """A medical network as its authors published it; their results stand in the headers of `configs/medical`.

    Attributes:
        input_size: (C, H, W) that the authors' figures are for.
        gflops: As printed; empty where no printed figure is known.
        counter: What the authors counted them with, and what it counts.
        arxiv: The paper.
        code: The official repository.
        license: Of the repository, hence of the weights.
        weights: Where trained weights are.
    """

    input_size: tuple[int, int, int]
    gflops: str
    counter: str
    arxiv: str
    code: str
    license: str
    weights: str


_VMAMBA = "README of github.com/MzeroMiko/VMamba"
_EFFICIENTVMAMBA = "README of github.com/TerryPei/EfficientVMamba"
_GROUPMAMBA = "README of github.com/Amshaker/GroupMamba"
_MSVMAMBA = "README of github.com/YuHengsss/MSVMamba"
_SPATIALMAMBA = "README of github.com/EdwardChasel/Spatial-Mamba"
_VSSD = "README of github.com/YuHengsss/VSSD"
_EFFICIENTVIM = "README of github.com/mlvlab/EfficientViM"

_NO_COUNT = "no count that we know of gives the printed figure: multiply-adds and scans alone give {}"
_SECOND_HEADS = "the printed figure is of the model without its second set of heads, which is counted here"

# By timm's name with the tag of the training.
PUBLISHED: dict[str, Published] = {
    "vmamba_tiny_v0.in1k": Published("23", "5.6", "82.2", _VMAMBA),
    "vmamba_small_v0.in1k": Published("44", "11.2", "83.5", _VMAMBA),
    "vmamba_base_v0.in1k": Published("76", "18.0", "83.7", _VMAMBA),
    "vmamba_tiny_s2l5.in1k": Published("31", "4.9", "82.5", _VMAMBA),
    "vmamba_small_s2l15.in1k": Published("50", "8.7", "83.6", _VMAMBA),
    "vmamba_base_s2l15.in1k": Published("89", "15.4", "83.9", _VMAMBA),
    "vmamba_tiny_s1l8.in1k": Published("30", "4.9", "82.6", _VMAMBA),
    "vmamba_small_s1l20.in1k": Published("49", "8.6", "83.3", _VMAMBA),
    "vmamba_base_s1l20.in1k": Published("87", "15.2", "83.8", _VMAMBA),
    "efficientvmamba_tiny.in1k": Published("", "0.8", "76.5", _EFFICIENTVMAMBA),
    "efficientvmamba_small.in1k": Published("", "1.3", "78.7", _EFFICIENTVMAMBA),
    "efficientvmamba_base.in1k": Published("", "4.0", "81.8", _EFFICIENTVMAMBA),
    "groupmamba_tiny.in1k": Published("23", "4.6", "83.3", _GROUPMAMBA, _NO_COUNT.format("4.67")),
    "groupmamba_small.in1k": Published("34", "7.0", "83.9", _GROUPMAMBA, _NO_COUNT.format("7.23")),
    "groupmamba_base.in1k": Published("57", "14", "84.5", _GROUPMAMBA),
    "msvmamba_nano.in1k": Published("6.86", "0.9", "77.3", _MSVMAMBA),
    "msvmamba_micro.in1k": Published("11.88", "1.5", "79.8", _MSVMAMBA),
    "msvmamba_tiny.in1k": Published("33.08", "4.6", "82.8", _MSVMAMBA),
    "msvmambav3_tiny.in1k": Published(
        "", "5.0", "83.0", _MSVMAMBA, "the official counter, run on the official model, gives 5.134 and not 5.0"
    ),
    "msvmambav3_small.in1k": Published("", "8.8", "84.1", _MSVMAMBA),
    "msvmambav3_base.in1k": Published("", "16.3", "84.4", _MSVMAMBA),
    "spatialmamba_tiny.in1k": Published("27", "4.5", "83.5", _SPATIALMAMBA),
    "spatialmamba_small.in1k": Published("43", "7.1", "84.6", _SPATIALMAMBA),
    "spatialmamba_base.in1k": Published("96", "15.8", "85.3", _SPATIALMAMBA),
    "vssd_micro.in1k": Published("14", "2.3", "82.5", _VSSD),
    "vssd_tiny.in1k": Published("24", "4.5", "83.6", _VSSD),
    "vssd_tiny.mesa_in1k": Published("24", "4.5", "84.1", _VSSD),
    "vssd_small.in1k": Published("40", "7.4", "84.1", _VSSD),
    "vssd_small.mesa_in1k": Published("40", "7.4", "84.5", _VSSD),
    "vssd_base.in1k": Published("89", "16.1", "84.7", _VSSD),
    "vssd_base.mesa_in1k": Published("89", "16.1", "85.4", _VSSD),
    "vssm_efficientvim_m1.e300_in1k": Published("", "0.239", "72.9", _EFFICIENTVIM),
    "vssm_efficientvim_m1.e450_in1k": Published("", "0.239", "73.5", _EFFICIENTVIM),
    "vssm_efficientvim_m1_dist.in1k": Published("", "0.239", "74.6", _EFFICIENTVIM, _SECOND_HEADS),
    "vssm_efficientvim_m2.e300_in1k": Published("", "0.355", "75.4", _EFFICIENTVIM),
    "vssm_efficientvim_m2.e450_in1k": Published("", "0.355", "75.8", _EFFICIENTVIM),
    "vssm_efficientvim_m2_dist.in1k": Published("", "0.355", "76.7", _EFFICIENTVIM, _SECOND_HEADS),
    "vssm_efficientvim_m3.e300_in1k": Published("", "0.656", "77.6", _EFFICIENTVIM),
    "vssm_efficientvim_m3.e450_in1k": Published("", "0.656", "77.9", _EFFICIENTVIM),
    "vssm_efficientvim_m3_dist.in1k": Published("", "0.656", "79.1", _EFFICIENTVIM, _SECOND_HEADS),
    "vssm_efficientvim_m4.e300_in1k": Published("", "1.112", "79.4", _EFFICIENTVIM),
    "vssm_efficientvim_m4.e450_in1k": Published("", "1.112", "79.6", _EFFICIENTVIM),
    "vssm_efficientvim_m4_dist.in1k": Published("", "1.112", "80.7", _EFFICIENTVIM, _SECOND_HEADS),
}

_MSVM_UNET = dict(
    arxiv="2408.13735",
    code="https://github.com/gndlwch2w/msvm-unet",
    license="unspecified (the official repository grants none)",
    weights="not published",
)
_MHS_UNET = PublishedNetwork(
    (3, 256, 256),
    gflops="",
    counter="",
    arxiv="2406.05992",
    code="https://github.com/PixDeep/MHS-VM",
    license="apache-2.0",
    weights="in the official repository (`pretrained/`)",
)
_CALFLOPS = (
    "counted with calflops in training mode: two for a multiply-add, norms and activations too, but not the scans; "
    "counted in that way, the network here has the printed figure"
)
_THOP = (
    "counted with thop: one for a multiply-add, four for an element of a norm, but neither the scans nor their "
    "projections; counted in that way, the network here has the printed figure"
)
# By the name of the function in vssm.medical.
NETWORKS: dict[str, PublishedNetwork] = {
    "msvm_unet_tiny": PublishedNetwork((3, 224, 224), gflops="15.53", counter=_CALFLOPS, **_MSVM_UNET),
    "msvm_unet_small": PublishedNetwork((3, 224, 224), gflops="", counter="", **_MSVM_UNET),
    "vm_unet": PublishedNetwork(
        (3, 256, 256),
        gflops="4.11",
        counter=_THOP,
        arxiv="2402.02491",
        code="https://github.com/JCruan519/VM-UNet",
        license="apache-2.0",
        weights="by hand, see the official README",
    ),
    "mhs_unet_3head": _MHS_UNET,
    "mhs_unet_4head": _MHS_UNET,
}


def published(name: str) -> Published | None:
    """What was published for a model; for a name without a tag, its default training's; None where there is nothing."""
    from timm.models import get_pretrained_cfg

    if name in PUBLISHED:
        return PUBLISHED[name]
    cfg = None if "." in name else get_pretrained_cfg(name, allow_unregistered=True)
    return PUBLISHED.get(f"{cfg.architecture}.{cfg.tag}") if cfg else None
