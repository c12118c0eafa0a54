# VMamba-T with inner ratio 2 and five layers in the third stage.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_tiny_s2l5", drop_path_rate=0.2))
