# What fine-tuning decays, as `paramwise_cfg.custom_keys`, for configs that spell it out. Those here leave it to the
# families (`FamilyDecayConstructor`), which declare the same. The official configs spare every parameter with "norm" in
# its name and decay all others, biases and the scan's parameters included. Names decide, and ours are not theirs: these
# rules pick the same parameters. A key is a part of a parameter's name; the longest match wins.
spared, decayed = dict(decay_mult=0.0), dict(decay_mult=1.0)

# The norms of VMamba's, EfficientVMamba's and MSVMamba's stems are numbered in the official code, not named.
decay_numbered_stem = {"norm": spared, "stem.norm": decayed}
# So are those of the strided convolutions between VMamba's stages in all but its first version.
decay_vmamba = {**decay_numbered_stem, "downsample.norm": decayed}
# Batch norms that are `bn` here and `norm` there.
batch_norms = [
    "stem.conv1.bn",
    "stem.conv2.0.bn",
    "stem.conv2.1.bn",
    "stem.conv3.0.bn",
    "stem.conv3.1.bn",
    "downsample.project.bn",
]
decay_vssd = {"norm": spared, **dict.fromkeys(batch_norms, spared)}
# Spatial-Mamba's blocks call their norms ln_1 and ln_2 (outnorm1 is another norm).
decay_spatialmamba = {**decay_vssd, ".norm1": decayed, ".norm2": decayed}
# GroupMamba's recipe was not published; this is the rule by our names.
decay_groupmamba = {"norm": spared}
del spared, decayed, batch_norms
