# HRVMamba-B, at 224 pixels.
_base_ = ["_base_/in1k_300e_hrvmamba.py"]

model = dict(model=dict(name="hrvmamba_base", drop_path_rate=0.2))
train_dataloader = dict(dataset=dict(transform=dict(input_size=224)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=224)))
test_dataloader = dict(dataset=dict(transform=dict(input_size=224)))
