"""The devices of a run, and what jax is told before it touches them.

`configure` comes first, then `create_mesh`; programs that were compiled are kept in `cache_dir`.
"""

from trainer.devices.backend import configure as configure
from trainer.devices.backend import require_deterministic_gpus as require_deterministic_gpus
from trainer.devices.compilation import cache_dir as cache_dir
from trainer.devices.compilation import compile_quickly as compile_quickly
from trainer.devices.compilation import cpu_kind as cpu_kind
from trainer.devices.compilation import enable_compilation_cache as enable_compilation_cache
from trainer.devices.mesh import DATA_AXIS as DATA_AXIS
from trainer.devices.mesh import are_there as are_there
from trainer.devices.mesh import check_divisible as check_divisible
from trainer.devices.mesh import create_mesh as create_mesh
from trainer.devices.mesh import describe as describe
from trainer.devices.mesh import place as place
from trainer.devices.mesh import platform_of as platform_of
from trainer.devices.mesh import replicated as replicated
from trainer.devices.mesh import sharded as sharded
from trainer.devices.settings import fix_settings as fix_settings
from trainer.devices.settings import fixed_settings as fixed_settings
