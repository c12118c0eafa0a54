# VMamba-T with the SSD mixer, which its authors never trained.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_tiny_m2", drop_path_rate=0.2))
