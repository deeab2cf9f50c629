"""Devices: the first line of each script's `main()`."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# 512-bit vectors speed up matrix products on the processors that have them
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


def setup() -> Mesh:
    """Make every CPU core a device of its own, and return the mesh of all devices.

    XLA splits a batch over devices much better than one operation over cores. Must run before
    anything creates an array; where the number of devices is set already, that number stays.
    Compiled programs are kept in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores)
    return mesh()


def cache_folder() -> Path:
    """Where compiled programs are kept: one folder a version of jaxlib and kind of processor.

    A program compiled for another processor may be refused with a warning at every start.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    kind = f"{platform.machine()} {importlib.metadata.version('jaxlib')} {features}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "toyllm" / hashlib.sha256(kind.encode()).hexdigest()[:16]


def mesh() -> Mesh:
    """All devices along one axis: rows of a batch, or runs of a population."""
    return Mesh(np.array(jax.devices()), ("data",))


def split(mesh: Mesh, tree, axis: int = 0):
    """Put arrays on the mesh, cut along `axis`; whole on each device where it does not divide."""
    if jax.tree.leaves(tree)[0].shape[axis] % mesh.devices.size:
        return copy(mesh, tree)
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.device_put(tree, NamedSharding(mesh, spec))


def copy(mesh: Mesh, tree):
    """Put a whole copy of the arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def place(mesh: Mesh, state):
    """Put a training state on the mesh: stacks of matrices shared out, all else everywhere.

    A stack [N, rows, columns], which only an optimizer has, is cut along N where that divides.
    """

    def spec(x) -> PartitionSpec:
        shared = np.ndim(x) == 3 and np.shape(x)[0] % mesh.devices.size == 0
        return PartitionSpec("data") if shared else PartitionSpec()

    shardings = jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), state)
    return jax.device_put(state, shardings)


def options() -> dict:
    """Compiler options for `jax.jit` that pay on this backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else {}
