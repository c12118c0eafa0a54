# msvm_unet_tiny: 35.93 M parameters, 4 classes. Published (arXiv 2408.13735, best of the checkpoints on the test
# volumes): ACDC mean Dice 92.58 %; right ventricle 91.00, myocardium 90.35, left ventricle 96.39.
_base_ = ["_base_/default_runtime.py", "_base_/acdc_224.py", "_base_/schedule_msvm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: True downloads VMamba-T's (s1l8) ImageNet weights for the encoder; a path reads them from a file.
    network=dict(name="msvm_unet_tiny", num_classes=4, pretrained=True, drop_path_rate=0.2),
    loss=dict(type="CEDiceLoss", ce_weight=0.4, dice_weight=0.6),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
