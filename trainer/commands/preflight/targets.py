"""The accelerators that a run can be compiled for, and what they can do."""

import dataclasses
import re

from trainer.errors import UsageError

TPU, GPU = "tpu", "gpu"


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures of an accelerator: peaks of its data sheet, which no program reaches.

    Attributes:
      platform: "tpu" or "gpu".
      memory: bytes.
      bandwidth: of the memory, bytes a second.
      flops: dtype to floating-point operations a second, of matrix products as jax computes them
        by default: bfloat16 passes for float32 on a TPU, TF32 on a GPU; no sparsity.
      interconnect: to the other chips, bytes a second in both directions together.
      source: where the figures are from.
      example: a target with such chips.
    """

    platform: str
    memory: float
    bandwidth: float
    flops: dict[str, float]
    interconnect: float
    source: str
    example: str


def _chip(
    platform: str,
    page: str,
    tflops: tuple[float, float],
    memory: float,
    bandwidth: float,
    interconnect: float,
    example: str,
) -> Chip:
    """Return a chip: TFLOP/s in float32 and bfloat16, GB, GB/s, GB/s."""
    float32, bfloat16 = (1e12 * peak for peak in tflops)
    return Chip(
        platform,
        1e9 * memory,
        1e9 * bandwidth,
        {"float32": float32, "bfloat16": bfloat16},
        1e9 * interconnect,
        page,
        example,
    )


_GOOGLE, _NVIDIA = "docs.cloud.google.com/tpu/docs", "www.nvidia.com/en-us/data-center"
CHIPS = {
    "v4": _chip(TPU, f"{_GOOGLE}/v4", (275, 275), 32, 1200, 300, "v4:2x2x1"),
    "v5e": _chip(TPU, f"{_GOOGLE}/v5e", (197, 197), 16, 819, 400, "v5e:2x4"),
    "v5p": _chip(TPU, f"{_GOOGLE}/v5p", (459, 459), 95, 2765, 1200, "v5p:2x2x2"),
    "v6e": _chip(TPU, f"{_GOOGLE}/v6e", (918, 918), 32, 1638, 800, "v6e:2x4"),
    "tpu7x": _chip(TPU, f"{_GOOGLE}/tpu7x", (2307, 2307), 192, 7380, 1200, "tpu7x:2x2x1"),
    "a100": _chip(GPU, f"{_NVIDIA}/a100", (156, 312), 80, 2039, 600, "a100:8"),
    "h100": _chip(GPU, f"{_NVIDIA}/h100", (494, 989), 80, 3350, 900, "h100:8"),
    "h200": _chip(GPU, f"{_NVIDIA}/h200", (494, 989), 141, 4800, 900, "h200:8"),
    "b200": _chip(GPU, f"{_NVIDIA}/hgx", (1125, 2250), 180, 7700, 1800, "b200:8"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Accelerators to compile for.

    Attributes:
      name: as it was given, such as "v5e:2x4" or "h100:2x8".
      chip: what each of them can do.
      kind: the name of the chip.
      shape: of a TPU slice, in chips; of GPUs (hosts, GPUs of a host).
    """

    name: str
    chip: Chip
    kind: str
    shape: tuple[int, ...]


def parse_targets(names: list[str]) -> list[Target]:
    """Return the targets of these names.

    Args:
      names: such as "v5e:2x4", "tpu7x:2x2x1", "h100:8" or "h100:4x8".

    Raises:
      UsageError: there are none, or one is not valid; the message says what would be.
    """
    examples = ", ".join(chip.example for chip in CHIPS.values())
    if not names:
        raise UsageError(
            f"preflight needs --target; use one or more of {examples}, or other sizes of these"
        )
    return [_parse(name, examples) for name in names]


def _parse(name: str, examples: str) -> Target:
    """Return the target of a name."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    kind = match[1] if match else name.split(":")[0]
    if match is None or kind not in CHIPS:
        raise UsageError(
            f"--target={name} is not valid; use such as {examples} (a TPU slice in chips; GPUs of "
            "a host, or HOSTSxGPUS)"
        )
    chip, shape = CHIPS[kind], tuple(map(int, match[2].split("x")))
    if 0 in shape or (chip.platform == GPU and len(shape) > 2):
        raise UsageError(f"--target={name} is not valid; use such as {chip.example}")
    return Target(name, chip, kind, (1, *shape)[-2:] if chip.platform == GPU else shape)
