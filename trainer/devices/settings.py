"""Settings of jax that would change a run are fixed; some that would end it are refused."""

import contextlib
from collections.abc import Iterator

import jax

from trainer.errors import UsageError

# Read when a program is traced or lowered. The first two change random numbers, such as those of
# shifts and dropout; the last, if strict, ends in tracebacks from flax and optax.
_FIXED = {
    "jax_threefry_partitionable": True,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
}

# For debugging: what their values begin with, and why no run survives them.
_REFUSED = {
    "jax_disable_jit": ("True", "the trainer compiles its steps"),
    "jax_no_tracing": ("True", "the trainer traces its steps"),
    "jax_transfer_guard": ("disallow", "the trainer puts examples and numbers on the devices"),
}


def refuse_unusable() -> None:
    """Refuse settings with which a run would end in a traceback of jax.

    Raises:
      UsageError: naming the variable that sets it.
    """
    for name, (value, reason) in _REFUSED.items():
        found = str(jax.config.values.get(name))
        if found.startswith(value):
            raise UsageError(f"{name.upper()}={found} is set, and {reason}; unset it")


def fix_settings() -> None:
    """Set what must not depend on the environment, for the rest of the process."""
    for name, value in _FIXED.items():
        jax.config.update(name, value)


@contextlib.contextmanager
def fixed_settings() -> Iterator[None]:
    """While open, what must not depend on the environment is set."""
    before = {name: jax.config.values[name] for name in _FIXED}
    fix_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
