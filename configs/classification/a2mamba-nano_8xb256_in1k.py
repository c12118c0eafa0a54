# A2Mamba-N, without an average of the weights and without MESA.
_base_ = ["_base_/in1k_300e_a2mamba.py"]

model = dict(model=dict(name="a2mamba_nano"), mixup=dict(mixup_alpha=0.1))
train_dataloader = dict(dataset=dict(transform=dict(color_jitter=None)))
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    # From 1e-6.
    {**_base_.param_scheduler[0], "start_factor": 2.5e-4},
    _base_.param_scheduler[1],
]
custom_hooks = []
