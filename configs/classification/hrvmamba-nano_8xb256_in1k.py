# HRVMamba-N: 2048 images a step, and rates twice as high.
_base_ = ["_base_/in1k_300e_hrvmamba.py"]

model = dict(model=dict(name="hrvmamba_nano", drop_path_rate=0.1))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], "eta_min": 2e-5}]
auto_scale_lr = dict(base_batch_size=2048)
