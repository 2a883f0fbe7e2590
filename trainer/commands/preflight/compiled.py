"""What a compiled program tells: what it needs, what it moves, and whether its loops are known."""

import dataclasses
import re
from typing import Any

_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# A collective in the text of a program: the type of its result, and which one. Its second half,
# such as all-reduce-done, moves nothing.
_COLLECTIVE = re.compile(rf"= (.*?) ({_COLLECTIVES})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_LOOP = re.compile(r"= .*? while\(.*")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_HOST = re.compile(
    r"= .*? (infeed|outfeed|send|recv)\(|custom_call_target=\"[^\"]*callback[^\"]*\""
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind in a program.

    Attributes:
      kind: such as "all-reduce".
      count: how many stand in the program; one in a loop counts once.
      bytes: of their results, together.
    """

    kind: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled program tells of itself, for one device.

    Attributes:
      arguments: bytes that it is given.
      outputs: bytes of its results.
      donated: bytes of results that take the place of arguments.
      temporaries: bytes that it needs while it runs.
      code: bytes of the program itself.
      flops: floating-point operations; of a loop with an unknown trip count, those of one turn.
      accessed: bytes read and written in memory, likewise.
      collectives: by kind.
      loops: trip count of each loop, None where the compiler does not know it.
      host_transfers: operations that move something to or from the host.
    """

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    code: int
    flops: float
    accessed: float
    collectives: list[Collective]
    loops: list[int | None]
    host_transfers: int


def read_compiled(compiled: Any) -> Compiled:
    """Return what a program tells.

    Args:
      compiled: a jax.stages.Compiled.
    """
    memory, cost, text = (
        compiled.memory_analysis(),
        compiled.cost_analysis() or {},
        compiled.as_text(),
    )
    # Older versions of jax return a list with one dictionary.
    cost = cost[0] if isinstance(cost, list) else cost
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        collectives=find_collectives(text),
        loops=find_loops(text),
        host_transfers=len(_HOST.findall(text)),
    )


def find_collectives(text: str) -> list[Collective]:
    """Return the exchanges in the text of a program, by kind, in alphabetical order."""
    found: dict[str, list[int]] = {}
    for match in _COLLECTIVE.finditer(text):
        found.setdefault(match[2], []).append(_bytes_of(match[1]))
    return [Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items())]


def find_loops(text: str) -> list[int | None]:
    """Return the trip count of each loop in the text of a program, None where it is not known."""
    counts = [_TRIP_COUNT.search(match[0]) for match in _LOOP.finditer(text)]
    return [int(count[1]) if count else None for count in counts]


def _bytes_of(shapes: str) -> int:
    """Return the bytes of the arrays in the text of a type."""
    total = 0
    for dtype, dimensions in _SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        size = 1
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size * bits // 8
    return total
