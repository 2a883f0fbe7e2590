"""The devices of a target as jax knows them, from its compiler and without any device."""

import os
from typing import Any

import numpy as np
from jax.sharding import Mesh

from trainer.commands.preflight.targets import GPU, Target
from trainer.devices import DATA_AXIS
from trainer.errors import UsageError

# What XLA must know of a GPU to compile for it: (compute capability, multiprocessors, shared
# memory of one, of which a block may have, level-2 cache, clock in GHz, name). From the properties
# that the CUDA driver reports for these cards.
_GPUS = {
    "a100": ((8, 0), 108, 167936, 166912, 41943040, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": ((9, 0), 132, 233472, 232448, 52428800, 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": ((9, 0), 132, 233472, 232448, 52428800, 1.98, "NVIDIA H200"),
    "b200": ((10, 0), 148, 233472, 232448, 132644864, 1.965, "NVIDIA B200"),
}


# libtpu looks for the slice that it is on, asks the metadata server of a TPU VM, and complains that
# there is none; the topology asked for does not depend on it.
_NO_TPU_VM = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_ID": "0",
}


def create_target_mesh(target: Target) -> Mesh:
    """Return the mesh of all devices of a target, with the one axis "data".

    Args:
      target: the accelerators.

    Raises:
      UsageError: the compiler for them is not installed, or knows no such arrangement.
    """
    found = _gpu_topology(target) if target.chip.platform == GPU else _tpu_topology(target)
    return Mesh(np.array(found.devices), (DATA_AXIS,))


def _tpu_topology(target: Target) -> Any:
    """Return the topology of a TPU slice."""
    from jax.experimental import topologies

    for name, value in _NO_TPU_VM.items():
        os.environ.setdefault(name, value)
    options = {}
    if np.prod(target.shape) < 4:
        options["chips_per_host_bounds"] = [*target.shape, 1, 1][:3]
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target.name, **options)
    except Exception as error:  # jaxlib raises several kinds, by version.
        raise _refusal(target, error, "tpu", "libtpu") from error


def _gpu_topology(target: Target) -> Any:
    """Return the topology of hosts with GPUs."""
    from jax.experimental import topologies

    hosts, gpus = target.shape
    try:
        return topologies.get_topology_desc(
            target.kind, "cuda", target_config=_gpu_config(target), topology=f"1x{hosts}x{gpus}"
        )
    except Exception as error:
        raise _refusal(target, error, "cuda", "jax_cuda13_plugin") from error


def _refusal(target: Target, error: Exception, extra: str, package: str) -> UsageError:
    """Return the error that says what is missing, or which arrangement would do."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        return UsageError(
            f"--target={target.name} needs the compiler of its platform; install it: "
            f"pip install -e '.[{extra}]' (no such device is needed)"
        )
    return UsageError(
        f"--target={target.name}: the compiler knows no such arrangement "
        f"({str(error).splitlines()[0]}); use such as {target.chip.example}"
    )


def _gpu_config(target: Target) -> str:
    """Return XLA's description of a GPU, a GpuTargetConfigProto as text."""
    (major, minor), cores, shared, optin, cache, clock, name = _GPUS[target.kind]
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {target.chip.bandwidth:.0f}
  device_memory_size: {target.chip.memory:.0f}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
