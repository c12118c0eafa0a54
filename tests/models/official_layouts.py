"""Layouts of official checkpoints older than the present one, which several families' first files have."""

import re


def linear_layers_as_convolutions(weights):
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2)\.weight$")
    return {k: v[:, :, None, None] if linear.search(k) else v for k, v in weights.items()}


def one_file(weights):
    """The layout of VMamba's single file, which has the projections in one."""
    flat = {}
    for k, v in weights.items():
        k = k.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight")
        flat[k] = v.flatten(0, 1) if "x_proj." in k or "dt_projs.weight" in k else v
    return flat


def one_file_of_patch_merging(weights):
    names = {"downsample.norm.": "downsample.1.", "downsample.reduction.": "downsample.2."}
    return {re.sub("|".join(map(re.escape, names)), lambda m: names[m[0]], k): v for k, v in weights.items()}


def early_names(weights):
    early = {}
    for k, v in weights.items():
        k = k.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        k = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", k).replace(".op.", ".self_attention.")
        early[k.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.")] = v
    return early
