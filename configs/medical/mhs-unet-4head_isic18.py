# mhs_unet_4head: 17.26 M parameters, 1 class.
# Published (arXiv 2406.05992, the repository's test): ISIC18 mIoU 80.85 %, Dice 89.41, tested with threshold 0.4.
_base_ = ["_base_/default_runtime.py", "_base_/isic_256.py", "_base_/schedule_vm_unet.py"]

# threshold: of the gate between the routes; no checkpoint holds it. Test with 0.4 for the published
# setting: --cfg-options model.network.threshold=0.4
model = dict(
    type="UNetSegmentor",
    network=dict(name="mhs_unet_4head", num_classes=1, threshold=0.5, drop_path_rate=0.2),
    loss=dict(type="BCEDiceLoss"),
)
# The official training validates after epoch 100 only.
train_cfg = dict(val_begin=101)
default_hooks = dict(checkpoint=dict(save_best="dice"))
