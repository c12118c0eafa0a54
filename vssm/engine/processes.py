"""Join the other processes of a run."""

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from mmengine.dist import init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing

from .config import ConfigError, on_gpu

__all__ = ["join_processes"]


def join_processes(launcher: str, env_cfg: Mapping[str, Any]) -> None:
    """Join the other processes, unless it has been done: by the config's backend on GPUs, else by gloo.

    torchrun starts all processes again when one is lost. Its store then still holds the addresses of those before,
    which gloo tries to reach in vain; so every start on one machine has names of its own in the store. Machines do not
    count their starts alike: on several, torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives each start a
    store of its own.

    Args:
        launcher: ``"pytorch"`` or another of mmengine's.
        env_cfg: The config's section of this name.

    Raises:
        ConfigError: The launcher's environment variables are not there, or it does not work without GPUs.
    """
    if is_distributed():
        return
    options: dict[str, Any] = {}
    if launcher == "pytorch":
        missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"The launcher 'pytorch' needs the environment variables {', '.join(missing)}, which torchrun sets."
            )
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if restart != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1":
            store, _, _ = next(dist.rendezvous("env://"))
            options["store"] = dist.PrefixStore(f"restart_{restart}", store)
    if on_gpu():
        # mmengine would leave a start method that was not chosen yet at its own.
        set_multi_processing(**(env_cfg.get("mp_cfg") or {}), distributed=True)
        init_dist(launcher, **(env_cfg.get("dist_cfg") or {}), **options)
        return
    if launcher != "pytorch":
        raise ConfigError(f"The launcher '{launcher}' needs CUDA; on CPUs use torchrun and 'pytorch'.")
    # mmengine's own start-up selects a CUDA device whatever the backend.
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]), **options)
