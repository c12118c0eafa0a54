# PlainMamba-L3. The average: see plainmamba-l2_8xb256_in1k.py.
_base_ = ["_base_/in1k_300e_plainmamba.py"]

model = dict(model=dict(name="plainmamba_l3", drop_path_rate=0.4))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], "eta_min": 1e-5}]
auto_scale_lr = dict(base_batch_size=1024)
