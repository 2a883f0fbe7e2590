"""How programs are compiled, and where those that were are kept."""

import contextlib
import hashlib
import os
import pathlib
import platform as host

import jax
from jax.sharding import Mesh

from trainer.devices.mesh import platform_of

# Seconds: what compiles faster than this is not worth a file.
_SHORTEST_COMPILATION = 0.05

_OPTIMIZATION = "xla_backend_optimization_level"


def compile_quickly(lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a program that runs rarely, once or once an epoch; on a CPU in half of the time.

    Level 1 of LLVM's optimization leaves out passes for speed. The first state has the same bits
    (a test compares them); not so at level 0, which does not fuse a product with a sum.

    Args:
      lowered: the program.
      mesh: the devices that it is for.
    """
    cpu = platform_of(mesh) == "cpu"
    return lowered.compile(compiler_options={_OPTIMIZATION: "1"} if cpu else None)


def enable_compilation_cache() -> None:
    """Let jax keep and find compiled programs; before anything is compiled.

    A folder that the user chose (JAX_COMPILATION_CACHE_DIR) stays. Where no folder can be written,
    nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_dir() -> pathlib.Path:
    """Return the folder of compiled programs, one for each kind of CPU.

    jax's keys do not tell one kind of CPU from another, and a home may be shared by hosts of
    several kinds: a program for the wrong one would crash.
    """
    # Without HOME and without an entry in the list of users, "~" stays: nothing can be kept then.
    home = os.path.expanduser("~")
    home = os.devnull if home == "~" else home
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return pathlib.Path(root) / "cyclic-trainer" / cpu_kind()


def cpu_kind() -> str:
    """Return a name for CPUs that can do the same as this one, as far as the system tells."""
    return f"{host.machine()}-{hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]}"


def _cpu_features() -> str:
    """Return what this CPU can do, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return host.processor()
