"""Networks for medical image segmentation: any timm backbone under a convolutional or state-space decoder.

The networks need nothing but timm. Training them needs the extra [medical] and the module `vssm.medical.segmentor`.
"""

from .hymamba import hymamba
from .mhs_unet import mhs_unet_3head, mhs_unet_4head
from .msvm_unet import msvm_unet_small, msvm_unet_tiny
from .unet import UNet, create_unet
from .vm_unet import vm_unet

__all__ = [
    "UNet",
    "create_unet",
    "hymamba",
    "mhs_unet_3head",
    "mhs_unet_4head",
    "msvm_unet_small",
    "msvm_unet_tiny",
    "vm_unet",
]
