# VM-UNet with its schedule; a leaf says the classes and the loss.
_base_ = ["default_runtime.py", "schedule_vm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: a file with VMamba-S's weights of the first version (vssmsmall_dp03_ckpt_epoch_238.pth).
    network=dict(name="vm_unet", pretrained=False, drop_path_rate=0.2),
)
