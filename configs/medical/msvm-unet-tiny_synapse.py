# msvm_unet_tiny: 35.93 M parameters, 9 classes. Published (arXiv 2408.13735, best of the checkpoints on the test
# volumes): Synapse mean Dice 85.00 %, HD95 14.75; aorta 88.73, gallbladder 74.90, left kidney 85.62, right kidney
# 84.47, liver 95.74, pancreas 71.53, spleen 92.52, stomach 86.51.
_base_ = ["_base_/default_runtime.py", "_base_/synapse_224.py", "_base_/schedule_msvm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: True downloads VMamba-T's (s1l8) ImageNet weights for the encoder; a path reads them from a file.
    network=dict(name="msvm_unet_tiny", num_classes=9, pretrained=True, drop_path_rate=0.2),
    loss=dict(type="CEDiceLoss", ce_weight=0.4, dice_weight=0.6),
)
train_dataloader = dict(dataset=dict(transform=dict(augment="msvm_unet", mean=0.5, std=0.5)))
val_cfg = dict(mean=0.5, std=0.5)
test_cfg = dict(mean=0.5, std=0.5)
