# PlainMamba-L2. Officially the average was to move ten times as fast after epoch 250, in code that fails there.
_base_ = ["_base_/in1k_300e_plainmamba.py"]

model = dict(model=dict(name="plainmamba_l2", drop_path_rate=0.2))
