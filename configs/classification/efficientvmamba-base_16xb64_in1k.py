# EfficientVMamba-B.
_base_ = ["_base_/in1k_300e_efficientvmamba.py"]

model = dict(model=dict(name="efficientvmamba_base"))
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=1024)
