# vm_unet: 27.43 M parameters, 1 class. Published (arXiv 2402.02491): ISIC18 mIoU 81.35 %, Dice 89.71, accuracy 94.91,
# specificity 96.13, sensitivity 91.12; mIoU is the lesion's alone. Users report mIoU 79.2 to 80.4.
_base_ = ["_base_/default_runtime.py", "_base_/isic_256.py", "_base_/schedule_vm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: a file with VMamba-S's weights of the first version (vssmsmall_dp03_ckpt_epoch_238.pth).
    network=dict(name="vm_unet", num_classes=1, pretrained=False, drop_path_rate=0.2),
    loss=dict(type="BCEDiceLoss"),
)
default_hooks = dict(checkpoint=dict(save_best="dice"))
