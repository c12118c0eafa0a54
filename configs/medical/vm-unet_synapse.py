# VM-UNet on Synapse's eight organs and the background.
_base_ = ["_base_/vm-unet.py", "_base_/synapse_224.py"]

model = dict(network=dict(num_classes=9), loss=dict(type="CEDiceLoss", ce_weight=1.0, dice_weight=1.0))
param_scheduler = [{**_base_.param_scheduler[0], "T_max": 100}]
train_cfg = dict(val_interval=20)
# The published checkpoint is the one with the lowest training loss: best_train_loss.pth beside the one that was best in
# validation.
custom_hooks = [dict(type="TrainLossHook", save_best=True)]
