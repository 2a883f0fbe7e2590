"""Compiled programs, kept in the user's cache folder: the next run of the same kind starts warm."""

import contextlib
import hashlib
import os
import pathlib
import platform

import jax

# Seconds: what compiles faster than this is not worth a file.
_SHORTEST_COMPILATION = 0.05


def enable() -> None:
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
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cpu = hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]
    return pathlib.Path(root) / "cyclic-trainer" / f"{platform.machine()}-{cpu}"


def _cpu_features() -> str:
    """Return what this CPU can do, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
