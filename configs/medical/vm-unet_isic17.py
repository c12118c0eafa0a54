# vm_unet: 27.43 M parameters, 1 class. Published (arXiv 2402.02491): ISIC17 mIoU 80.23 %, Dice 89.03, accuracy 96.29,
# specificity 97.58, sensitivity 89.90; mIoU is the lesion's alone.
_base_ = ["_base_/default_runtime.py", "_base_/isic_256.py", "_base_/schedule_vm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: a file with VMamba-S's weights of the first version (vssmsmall_dp03_ckpt_epoch_238.pth).
    network=dict(name="vm_unet", num_classes=1, pretrained=False, drop_path_rate=0.2),
    loss=dict(type="BCEDiceLoss"),
)
default_hooks = dict(checkpoint=dict(save_best="dice"))
