# vm_unet: 27.43 M parameters, 9 classes. Published (arXiv 2402.02491): Synapse mean Dice 81.08 %, HD95 19.21; aorta
# 86.40, gallbladder 69.41, left kidney 86.16, right kidney 82.76, liver 94.17, pancreas 58.80, spleen 89.51, stomach
# 81.40. Users report 75 to 79.9; MSVM-UNet's authors 82.38 in their own run.
_base_ = ["_base_/default_runtime.py", "_base_/synapse_224.py", "_base_/schedule_vm_unet.py"]

model = dict(
    type="UNetSegmentor",
    # pretrained: a file with VMamba-S's weights of the first version (vssmsmall_dp03_ckpt_epoch_238.pth).
    network=dict(name="vm_unet", num_classes=9, pretrained=False, drop_path_rate=0.2),
    loss=dict(type="CEDiceLoss", ce_weight=1.0, dice_weight=1.0),
)
param_scheduler = [{**_base_.param_scheduler[0], "T_max": 100}]
train_cfg = dict(val_interval=20)
# The published checkpoint is the one with the lowest training loss: best_train_loss.pth beside the one that was best in
# validation.
custom_hooks = [dict(type="TrainLossHook", save_best=True)]
