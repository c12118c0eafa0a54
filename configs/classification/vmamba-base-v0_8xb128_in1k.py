# VMamba-B of the first version, with Mamba's block.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_base_v0", drop_path_rate=0.6))
