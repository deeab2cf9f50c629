"""Devices: the first line of each script's `main()`, and how arrays lie on them.

There is one mesh with one axis, `data`: rows of a batch, or runs of a population. With several
processes (hosts) every process runs the same script on the same arguments, and the mesh holds the
devices of all of them; only the first process writes files and prints.
"""

import hashlib
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from toyllm.base import system
from toyllm.base.errors import InputError

# 512-bit vectors speed up matrix products on the processors that have them
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
# environment variables in which launchers give the number of processes
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
HEARTBEAT_S = 30  # after which a silent process is taken for dead


def setup(
    compile_cache: bool = True,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Mesh:
    """Join the other processes, if any; make every CPU core a device; return the mesh of all.

    XLA splits a batch over devices much better than one operation over cores. Must run before
    anything creates an array; where the number of devices is set already (JAX_NUM_CPU_DEVICES,
    XLA_FLAGS), that number stays.

    compile_cache: keep compiled programs in the user's cache folder (Linux), or in
        JAX_COMPILATION_CACHE_DIR.
    coordinator, processes, process: HOST:PORT of the first process, how many there are, and which
        this is; else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else what
        Slurm or Open MPI says, else one process.
    """
    if not compile_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and platform.system() == "Linux":
        jax.config.update("jax_compilation_cache_dir", cache_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.config.jax_enable_x64:
        raise InputError(
            "JAX_ENABLE_X64 is set: found 64-bit floats, expected the 32-bit floats of all models "
            "and checkpoints here; unset it: env -u JAX_ENABLE_X64 uv run ..."
        )
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", cores())
    join(coordinator, processes, process)
    return mesh()


def start() -> None:
    """Start the backend, if it has not been. Raises InputError saying why that fails.

    Whatever asks for devices below does this first.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second has no message
        asked = jax.config.jax_platforms
        why = str(error).partition("(set JAX_PLATFORMS")[0].strip() or "jax has no plugin for it"
        if not asked:
            raise InputError(f"no device can be used: {why}") from error
        jax.config.update("jax_platforms", None)
        there = ", ".join({device.platform for device in jax.devices()})
        needed = f"jax's plugin for {asked}"
        if "cuda" in asked or "gpu" in asked:
            needed = "the NVIDIA driver and uv run --extra cuda12 ..."
        raise InputError(
            f"JAX_PLATFORMS={asked}: no such device can be used ({why}); there are: {there}; "
            f"unset it to use these (env -u JAX_PLATFORMS uv run ...), or install {needed}"
        ) from error


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run, if there are any (see `setup`)."""
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    launched = any(int(os.environ.get(name, "1")) > 1 for name in LAUNCHERS)
    if not (coordinator or processes or launched) or jax.distributed.is_initialized():
        return
    if processes is None and "JAX_NUM_PROCESSES" in os.environ:
        processes = int(os.environ["JAX_NUM_PROCESSES"])
    if process is None and "JAX_PROCESS_ID" in os.environ:
        process = int(os.environ["JAX_PROCESS_ID"])
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"--coordinator {coordinator} --processes {processes} --process {process}: {first}"
        ) from error


def cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use: those it is bound to, within its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(bound, quota(cgroups))))


def quota(cgroups: Path) -> float:
    """Seconds of core time per second that a container (cgroup v2 or v1) may use."""
    try:
        if (file := cgroups / "cpu.max").exists():
            time, period = file.read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            time, period = ((cgroups / "cpu" / name).read_text() for name in names)
        return float(time) / float(period) if float(time) > 0 else math.inf
    except (OSError, ValueError):  # no such files, or "max"
        return math.inf


def processor() -> str:
    """The kind of processor: its architecture, and a hash of what it can do."""
    features = system.cpuinfo("flags", "Features") or platform.processor()
    return f"{platform.machine()} {hashlib.sha256(features.encode()).hexdigest()[:16]}"


def cache_folder() -> str | None:
    """Where compiled programs are kept: a folder for each processor, jaxlib and Python.

    A program compiled for another processor, or packed by a Python that compresses in another way
    (as from 3.14 on), may be refused with a warning at every start. None: the user has no home.
    """
    kind = f"{processor()} {importlib.metadata.version('jaxlib')} {sys.version_info[:2]}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return str(home / "toyllm" / hashlib.sha256(kind.encode()).hexdigest()[:16])


def mesh() -> Mesh:
    """All devices of all processes along one axis."""
    start()
    return Mesh(np.array(jax.devices()), ("data",))


def local_mesh() -> Mesh:
    """The devices of this process."""
    start()
    return Mesh(np.array(jax.local_devices()), ("data",))


def first() -> bool:
    """Whether this is the process that writes and prints."""
    start()
    return jax.process_index() == 0


def wait() -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("wait")


def all_max(value: int) -> int:
    """The largest value of all processes, so that all of them save or end at the same step."""
    if jax.process_count() == 1:
        return value
    return int(_gather(np.array(int(value))).max())


def differing(inputs: dict[str, bytes]) -> list[str]:
    """The names of the inputs whose bytes are not the same in all processes."""
    if jax.process_count() == 1:
        return []
    digests = [np.frombuffer(hashlib.sha256(x).digest(), np.uint8) for x in inputs.values()]
    all_PND = np.asarray(_gather(np.stack(digests)))
    same_N = (all_PND == all_PND[:1]).all((0, 2))
    return [name for name, same in zip(inputs, same_N, strict=True) if not same]


def _gather(tree, tiled: bool = False):
    """Arrays of all processes, stacked along a new axis; tiled: the parts of each joined whole."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=tiled)


def by_first(action: Callable[[], None]) -> None:
    """Run an action in the first process alone; if it raises InputError, all processes do."""
    error = None
    if first():
        try:
            action()
        except InputError as caught:
            error = caught
    if all_max(error is not None):
        raise error or InputError("the first process says why")


def split(mesh: Mesh, tree, axis: int = 0):
    """Put arrays on the mesh, cut along `axis`; whole on each device where it does not divide.

    Every process has the whole arrays, and places the parts of its own devices.
    """
    divides = jax.tree.leaves(tree)[0].shape[axis] % mesh.devices.size == 0
    return jax.tree.map(lambda x: _put(x, mesh, axis if divides else None), tree)


def place(mesh: Mesh, state, shard_params: bool = False):
    """Put a training state on the mesh: stacks of matrices cut, all else copied.

    A stack [N, rows, columns], which only an optimizer has, is cut along N where that divides.
    shard_params: every other array is cut along its longest axis that divides, too.
    """

    def put(x) -> jax.Array:
        shape = np.shape(x)
        axes = range(1) if len(shape) == 3 else range(len(shape) * shard_params)
        axes = [a for a in axes if shape[a] % mesh.devices.size == 0]
        return _put(x, mesh, max(axes, key=lambda a: shape[a], default=None))

    return jax.tree.map(put, state)


def _put(x, mesh: Mesh, axis: int | None) -> jax.Array:
    """Put an array on the mesh, cut along an axis; None: whole on each device."""
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree):
    """Arrays from wherever they lie to NumPy, whole, in every process."""

    def whole(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return _gather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(whole, tree))


def stack(trees: list):
    """Trees of the same shape as one tree, stacked along a new axis 0, on the host."""
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(trees))


def take(stacked, r: int):
    """Tree r of trees that are stacked along axis 0, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[r]), stacked)


def over_models(
    function: Callable, mesh: Mesh, donate: tuple[int, ...] = (), inside: str | None = None
) -> Callable:
    """Compile a function of one model as a function of R models, stacked along axis 0.

    Devices share the models (their number must divide R). Within a device, `map` takes its models
    one by one and `vmap` all at once; None: what is faster there. On a CPU that is `map`, since
    small matrices stay in its caches (benchmarks/population.py); wide devices want all at once.
    """
    inside = inside or ("map" if jax.default_backend() == "cpu" else "vmap")

    def all_of_a_device(*stacked):
        if inside == "vmap":
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda args: function(*args), stacked)

    spec = PartitionSpec("data")
    shared = jax.shard_map(
        all_of_a_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return jax.jit(shared, donate_argnums=donate, compiler_options=options())


def options() -> dict:
    """Compiler options for `jax.jit` on this backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else {}
