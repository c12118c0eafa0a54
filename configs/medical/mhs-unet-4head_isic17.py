# mhs_unet_4head: 17.26 M parameters, 1 class.
# Published: none for weights trained on ISIC17. The authors' ISIC18 weights give mIoU 82.02 %, Dice 90.12 on the
# ISIC17 test images with threshold 0.4.
_base_ = ["_base_/default_runtime.py", "_base_/isic_256.py", "_base_/schedule_vm_unet.py"]

# threshold: of the gate between the routes; no checkpoint holds it.
model = dict(
    type="UNetSegmentor",
    network=dict(name="mhs_unet_4head", num_classes=1, threshold=0.0, drop_path_rate=0.2),
    loss=dict(type="BCEDiceLoss"),
)
# The official training validates after epoch 100 only.
train_cfg = dict(val_begin=101)
default_hooks = dict(checkpoint=dict(save_best="dice"))
