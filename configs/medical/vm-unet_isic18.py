# VM-UNet on ISIC18, in the authors' own split.
_base_ = ["_base_/vm-unet_isic.py"]
