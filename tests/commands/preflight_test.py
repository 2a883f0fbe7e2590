"""What compiled programs and names of targets are read as; compiling is tests/accelerator's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import also
from trainer import devices
from trainer.commands.preflight import command, topologies
from trainer.commands.preflight.compiled import (
    Collective,
    find_collectives,
    find_loops,
    read_compiled,
)
from trainer.commands.preflight.targets import CHIPS, Target, parse_targets
from trainer.config import TrainConfig
from trainer.errors import UsageError

# From programs that XLA:TPU and XLA:GPU have made, shortened.
TEXT = """
  %all-reduce.3 = f32[824460]{0:T(1024)} all-reduce(%fusion.2), channel_id=1, to_apply=%add
  %ar = (f32[10]{0}, bf16[2,3]{1,0}) all-reduce-start(%a, %b), channel_id=2
  %done = f32[10]{0} all-reduce-done(%ar)
  ROOT %g = u32[8,4]{1,0} all-gather(%h), dimensions={0}
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%b
  %v = (s32[]) while(%t), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"32"}}
  %name_all-reduce = pred[4]{0} compare(%x, %y), direction=LT
"""


def test_exchanges_and_loops_are_found() -> None:
    assert find_collectives(TEXT) == [
        Collective("all-gather", 1, 128),
        Collective("all-reduce", 2, 824460 * 4 + 40 + 12),
    ]
    assert find_loops(TEXT) == [None, 32]


def test_a_program_of_this_machine() -> None:
    """Exchanges, loops, donation and operations of programs that are known."""
    mesh = devices.create_mesh("cpu", 4)
    everywhere, cut = devices.replicated(mesh), devices.sharded(mesh)

    def step(state: jax.Array, batch: jax.Array) -> jax.Array:
        return state + (batch @ batch.T).sum()

    state = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=everywhere)
    batch = jax.ShapeDtypeStruct((4, 128), jnp.float32, sharding=cut)
    found = read_compiled(
        jax.jit(step, donate_argnums=0, out_shardings=everywhere).lower(state, batch).compile()
    )
    assert found.arguments == 64 * 64 * 4 + 128 * 4
    assert found.donated == 64 * 64 * 4
    assert found.flops >= 2 * 4 * 128
    assert found.collectives
    assert (found.loops, found.host_transfers) == ([], 0)
    looped = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y * 2, x))
    assert read_compiled(looped.lower(1.0, 3).compile()).loops == [None]
    fixed = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.sin(y), x))
    assert read_compiled(fixed.lower(jnp.ones(2000)).compile()).loops == [300]


def test_what_calls_the_host_is_seen() -> None:
    def step(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert read_compiled(jax.jit(step).lower(jnp.ones(3)).compile()).host_transfers == 1


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e:2x4", "v5e", (2, 4)),
        ("tpu7x:2x2x1", "tpu7x", (2, 2, 1)),
        ("h100:8", "h100", (1, 8)),
        ("b200:4x8", "b200", (4, 8)),
    ],
)
def test_targets(name: str, kind: str, shape: tuple[int, ...]) -> None:
    (target,) = parse_targets([name])
    assert (target.kind, target.shape, target.chip) == (kind, shape, CHIPS[kind])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foo", "--target=foo is not valid; use such as v4:2x2x1, v5e:2x4, "),
        ("v5e", "--target=v5e is not valid"),
        ("v7:2x2", "--target=v7:2x2 is not valid"),
        ("v5e:2x", "--target=v5e:2x is not valid"),
        ("h100:1x2x3", "--target=h100:1x2x3 is not valid; use such as h100:8"),
        ("h100:0", "--target=h100:0 is not valid"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_targets(["v5e:2x4", name])


def test_no_target() -> None:
    with pytest.raises(UsageError, match="preflight needs --target; use one or more of v4:2x2x1"):
        next(command.preflight(TrainConfig(), []))


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "tpu"), ("h100:8", "cuda")])
def test_a_compiler_that_is_not_there(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setattr(
        "jax.experimental.topologies.get_topology_desc", lambda *_, **__: exec("raise ValueError")
    )
    with pytest.raises(UsageError, match=rf"install it: pip install -e '.\[{extra}\]' \(no such"):
        topologies.create_target_mesh(*parse_targets([name]))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Target:
    """A target whose devices are the virtual ones of this machine, four to two chips."""
    memory = getattr(request, "param", 400e6)
    target = Target("cpu:2", dataclasses.replace(CHIPS["h100"], memory=memory), "h100", (1, 2))
    monkeypatch.setattr(command, "parse_targets", lambda _: [target])
    monkeypatch.setattr(command, "create_target_mesh", lambda _: devices.create_mesh("cpu", 4))
    return target


@pytest.mark.parametrize("reduction", ["tree", also("allreduce")])
def test_a_report(here: Target, config: TrainConfig, reduction: str) -> None:
    config = dataclasses.replace(config, reduction=reduction)
    (report,) = command.preflight(config, ["cpu:2"])
    assert json.loads(json.dumps(report)) == report
    assert (report["ok"], report["errors"], report["devices"]) == (True, {}, 4)
    assert report["bytes_there"] == 200e6
    step = {"tree": {"gradient", "update"}, "allreduce": {"train_step"}}[reduction]
    others = {"epoch_batches", "evaluate", "create_state", "check_replicas"}
    assert set(report["programs"]) == step | others
    # The dense layers of an MLP: twice the forward pass again for the gradients, less that of the
    # images.
    forward = 2 * 32 * (784 * 128 + 128 * 10)
    assert 2 * forward < report["step"]["flops"] < 4 * forward
    kinds = {each["kind"] for each in report["step"]["collectives"]}
    assert kinds == ({"all-to-all", "all-gather"} if reduction == "tree" else {"all-reduce"})
    assert report["step"]["host_transfers"] == 0
    assert report["step"]["donated"] > 2 * 4 * (784 * 128)
    lines = command.table([report]).splitlines()
    assert lines[1].split()[:2] == ["cpu:2", "yes"]
    assert max(map(len, lines)) <= 80


@pytest.mark.system
def test_the_moments_of_the_optimizer_are_counted(here: Target, config: TrainConfig) -> None:
    """With the tree the gradient's program does not see them, but they lie on the device."""
    needed = []
    for optimizer in ("sgd", "adamw"):
        given = dataclasses.replace(config, optimizer=optimizer, reduction="tree")
        (report,) = command.preflight(given, ["cpu:2"])
        needed.append(report["bytes_needed"])
    assert needed[1] - needed[0] >= 4 * (784 * 128 + 128 + 128 * 10 + 10)


@pytest.mark.system
def test_examples_in_each_place(here: Target, config: TrainConfig) -> None:
    """A quarter of them on each of four devices, or a few rows; the exchange is counted."""
    needed, moved = {}, {}
    for placement in ("replicated", "sharded", "streamed"):
        given = dataclasses.replace(config, data_placement=placement, reduction="tree")
        (report,) = command.preflight(given, ["cpu:2"])
        assert report["ok"]
        assert report["data_placement"] == placement
        assert ("exchange" in report["programs"]) == (placement == "sharded")
        needed[placement] = report["bytes_needed"]
        kinds = {each["kind"]: each["bytes"] for each in report["step"]["collectives"]}
        moved[placement] = kinds.get("reduce-scatter", 0)
    images = (2560 + 500) * 784
    assert needed["replicated"] - needed["sharded"] > 0.45 * images
    assert needed["sharded"] - needed["streamed"] > 0.1 * images
    assert moved["sharded"] == 32 * (784 + 4)
    assert moved["replicated"] == moved["streamed"] == 0


@pytest.mark.parametrize("here", [2e6], indirect=True)
def test_what_does_not_fit(here: Target, config: TrainConfig) -> None:
    (report,) = command.preflight(config, ["cpu:2"])
    assert report["bytes_needed"] > report["bytes_there"] == 1e6
    assert not report["ok"]
    assert command.table([report]).splitlines()[1].split()[:2] == ["cpu:2", "NO"]
    needed = f"{report['bytes_needed'] / 1e6:,.0f}"
    message = (
        f"cpu:2: with streamed examples a device needs {needed} MB and has 1 MB; use a smaller"
    )
    assert message in command.describe_failure(report)


def test_what_does_not_compile(
    here: Target, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nmore")

    monkeypatch.setattr(command, "lower_programs", lambda _: {"train_step": Refused()})
    (report,) = command.preflight(config, ["cpu:2"])
    assert not report["ok"]
    message = "cpu:2: train_step does not compile: RESOURCE_EXHAUSTED: Ran out of memory"
    assert command.describe_failure(report) == message
    assert "no: train_step: RESOURCE_EXHAUSTED" in command.table([report])


def test_a_batch_that_the_devices_do_not_divide(here: Target, config: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"--batch_size=129 cannot be cut .* 4 devices"):
        next(command.preflight(dataclasses.replace(config, batch_size=129), ["cpu:2"]))
