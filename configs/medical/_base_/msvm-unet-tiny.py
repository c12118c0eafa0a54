# MSVM-UNet-T with its loss and schedule; a leaf says the classes.
_base_ = ["default_runtime.py", "schedule_msvm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: True downloads VMamba-T's (s1l8) ImageNet weights for the encoder; a path reads them from a file.
    network=dict(name="msvm_unet_tiny", pretrained=True, drop_path_rate=0.2),
    loss=dict(type="CEDiceLoss", ce_weight=0.4, dice_weight=0.6),
)
