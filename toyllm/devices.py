"""Devices: the first line of each script's `main()`."""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# 512-bit vectors speed up matrix products on the processors that have them
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


def setup() -> Mesh:
    """Make every CPU core a device of its own, and return the mesh of all devices.

    XLA splits a batch over devices much better than one operation over cores. Must run before
    anything creates an array; where the number of devices is set already, that number stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores)
    return mesh()


def mesh() -> Mesh:
    """All devices along one axis: rows of a batch, or runs of a population."""
    return Mesh(np.array(jax.devices()), ("data",))


def split(mesh: Mesh, tree, axis: int = 0):
    """Put arrays on the mesh, cut along `axis` (whose size the device count must divide)."""
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.device_put(tree, NamedSharding(mesh, spec))


def copy(mesh: Mesh, tree):
    """Put a whole copy of the arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def options() -> dict:
    """Compiler options for `jax.jit` that pay on this backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else {}
