# VSSD-M.
# The official yaml says drop path 0.1, under a key that its code does not read; 0.2 is what the code passes.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vssd_micro", drop_path_rate=0.2))
