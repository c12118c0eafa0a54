# VMamba-T of the first version, with Mamba's block.
# The released weights carry drop path 0.1 in their name and are the raw ones, not the average.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_tiny_v0", drop_path_rate=0.2))
