# VM-UNet on ISIC17, in the authors' own split.
_base_ = ["_base_/vm-unet_isic.py"]
