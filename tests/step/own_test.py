"""Beginners' mistakes in a network or an optimizer of one's own: one message each, no traceback."""

from pathlib import Path

import jax
import pytest

from tests.helpers import assert_same_bits
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.step.networks import create_network
from trainer.step.own_optimizer import create_own_optimizer

NETWORK = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
class Network(nnx.Module):
    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        self.dense = nnx.Linear(784, num_classes, rngs=rngs)
    def __call__(self, inputs):
        return self.dense(inputs.reshape(inputs.shape[0], -1))
"""


def network(old: str = "", new: str = "") -> str:
    """A small network of one's own with something in it replaced."""
    assert old in NETWORK
    return NETWORK.replace(old, new)


def optimizer(body: str) -> str:
    """An optimizer of one's own with this body."""
    return f"import jax, jax.numpy as jnp, optax\ndef create():\n    {body}\n"


NO_NETWORK = {
    "no class of that name": (
        network("class Network", "class Netwrok"),
        "own.py has no Network (did you mean Netwrok?)",
    ),
    "an empty file": ("", "own.py has no Network; it defines nothing"),
    "a syntax error": ("class Network(nnx.Module:\n", "SyntaxError: invalid syntax ("),
    "an import that is not there": ("import torhc\n", "ModuleNotFoundError: No module named 'torh"),
    "an error on import": (
        "import jax\nkey = jax.random.kye(0)\n",
        "own.py, line 2: key = jax.random.kye(0))",
    ),
    "a script that ends": ("import sys\nsys.exit(3)\n", "SystemExit: 3 ("),
    "a constructor that ends": (
        network("self.dense =", "raise SystemExit; self.dense ="),
        "its constructor raises SystemExit (",
    ),
    "a call that ends": (
        network("return", "raise SystemExit(0); return"),
        "its __call__ (in evaluation) raises SystemExit: 0 (",
    ),
    "two parameters of one name": (
        network(
            "self.dense =",
            "self.x = nnx.Dict({'a/b': nnx.Param(jnp.ones(3)), "
            "'a': nnx.Dict({'b': nnx.Param(jnp.ones(3))})}); self.dense =",
        ),
        "it has two parameters with the name x/a/b, and a checkpoint keeps one of a name",
    ),
    "no nnx.Module": (network("(nnx.Module)"), "Network is no nnx.Module (of flax.nnx)"),
    "flax.linen": (
        "import flax.linen as nn\nclass Network(nn.Module):\n    pass\n",
        "but one of flax.linen, the older interface of Flax",
    ),
    "no class at all": ("Network = 3\n", "Network is of type int, and no class"),
    "a function that makes something else": (
        "def Network(**given):\n    return given['num_classes']\n",
        "Network(...) makes int, which is no nnx.Module",
    ),
    "the constructor of a Flax example": (
        network("self, *, image_shape, num_classes, dtype, rngs", "self, rngs"),
        "and does not take that: got an unexpected keyword argument 'image_shape'",
    ),
    "one argument more": (
        network("dtype, rngs", "dtype, rngs, width"),
        "missing a required argument: 'width'",
    ),
    "an error in the constructor": (
        network("784, num_classes", "image_shape[3], num_classes"),
        "its constructor raises IndexError: tuple index out of range (",
    ),
    "the call of a Flax example": (
        network("self, inputs", "self, inputs, rngs"),
        "called as network(inputs), and does not take that: missing a required argument: 'rngs'",
    ),
    "no call": (
        network("__call__", "forward"),
        "Network has no __call__, so nothing maps inputs to logits",
    ),
    "layers that do not fit": (
        network("784", "100"),
        "own.py, line 8: return self.dense(inputs.reshape(inputs.shape[0], -1)))",
    ),
    "a batch of a fixed size": (
        network("inputs.shape[0], -1", "128, -1"),
        "its __call__ (in evaluation) raises TypeError: cannot reshape array of shape",
    ),
    "another number of classes": (
        network("784, num_classes", "784, 7"),
        "returns float32[3,7]; it must return the logits of 3 images and 10 classes, float32[3,10]",
    ),
    "classes instead of logits": (
        network("-1))", "-1)).argmax(-1)"),
        "returns int32[3]; it must return the logits",
    ),
    "two results": (
        network("-1))", "-1)), inputs"),
        "its __call__ returns tuple, no array; it must return the logits",
    ),
    "nothing returned": (network("return ", ""), "its __call__ returns None, no array"),
    "logits in bfloat16": (
        network("-1))", "-1)).astype(jnp.bfloat16)"),
        "returns bfloat16[3,10]; it must return the logits of 3 images and 10 classes, "
        "float32[3,10]: end it with .astype(jnp.float32)",
    ),
    "parameters in bfloat16": (
        network("rngs=rngs)", "param_dtype=jnp.bfloat16, rngs=rngs)"),
        "its parameter dense/bias is bfloat16[10], and must be float32",
    ),
    "parameters that are whole numbers": (
        network("self.dense =", "self.n = nnx.Param(jnp.arange(3)); self.dense ="),
        "its parameter n is int32[3], and must be float32",
    ),
    "a counter": (
        network("self.dense =", "self.n = nnx.Variable(jnp.zeros((), int)); self.dense ="),
        "its state n is int32[], and must be float32",
    ),
    "no parameters": (
        network("nnx.Linear(784, num_classes, rngs=rngs)", "lambda x: x[:, :10]"),
        "it has no parameters (nnx.Param), so there is nothing to train",
    ),
    "state that is no array": (
        network("self.dense =", "self.n = nnx.Variable('text'); self.dense ="),
        "its state n is of type str; keep arrays in variables of Flax",
    ),
    "an array as an attribute": (
        network("self.dense =", "self.table = jnp.ones(3); self.dense ="),
        "its attribute table is an array, which Flax neither trains nor keeps",
    ),
    "state that grows": (
        network("return", "self.n = nnx.BatchStat(jnp.zeros(3)); return"),
        "its __call__ changes the shape of what it keeps (n)",
    ),
    "dropout without keys": (
        network("self.dense(inputs", "self.dense(nnx.Dropout(0.5)(inputs)"),
        "its __call__ (in evaluation) raises ValueError: `deterministic` is False, but no",
    ),
}

BY_HAND = "return optax.GradientTransformation"
NO_OPTIMIZER = {
    "an argument": (
        "def create(lr):\n    return 1\n",
        "it is called as create(), and does not take that: missing a required argument: 'lr'",
    ),
    "a learning rate": (
        optimizer("return optax.adam(1e-3)"),
        "it returns a step against the gradient, as optax.adam(learning_rate) does; leave the",
    ),
    "nothing returned": (
        optimizer("optax.scale_by_adam()"),
        "create() returns None, no optax transformation",
    ),
    "a constant": ("create = 3\n", "create is of type int, and no function"),
    "an error in it": (
        optimizer("return optax.scale_by_adma()"),
        "create() raises AttributeError: module 'optax' has no attribute 'scale_by_adma' (",
    ),
    "another argument of update": (
        optimizer("return optax.scale_by_polyak()"),
        "its update raises TypeError: ",
    ),
    "another form of state": (
        optimizer(f"{BY_HAND}(lambda p: jnp.zeros(()), lambda g, s, p: (g, (s, s)))"),
        "its update returns a state of another form than its init",
    ),
    "a direction of another shape": (
        optimizer(f"{BY_HAND}(lambda p: (), lambda g, s, p: (jnp.zeros(3), s))"),
        "its update returns something of another shape than the parameters",
    ),
    "a script that ends": (optimizer("raise SystemExit"), "create() raises SystemExit ("),
    "two leaves of one name": (
        optimizer(
            f"{BY_HAND}(lambda p: {{'a/b': jnp.zeros(2), 'a': {{'b': jnp.zeros(2)}}}}, "
            "lambda g, s, p: (g, s))"
        ),
        "its state has two leaves with the name a/b, and a checkpoint keeps one of a name",
    ),
    "keys in its state": (
        optimizer(f"{BY_HAND}(lambda p: jax.random.key(0), lambda g, s, p: (g, s))"),
        "its state has dtype key<fry>; keep numbers in it",
    ),
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", NO_NETWORK)
def test_mistakes_in_a_network(case: str) -> None:
    source, message = NO_NETWORK[case]
    Path("own.py").write_text(source)
    name = TrainConfig(model="own.py:Network").model
    with pytest.raises(UsageError) as caught:
        create_network(name, (28, 28, 1), 10)
    error = str(caught.value)
    print(f"error: {error}")
    assert error.startswith(f"--model={Path.cwd()}/own.py:Network: ")
    assert message in error
    assert "class Network(nnx.Module):\n      def __init__(self, *, image_shape, num_" in error
    assert "# inputs float32[B,28,28,1], logits float32[B,10]" in error


@pytest.mark.parametrize("case", NO_OPTIMIZER)
def test_mistakes_in_an_optimizer(case: str) -> None:
    source, message = NO_OPTIMIZER[case]
    Path("own.py").write_text(source)
    name = TrainConfig(optimizer="own.py:create").optimizer
    with pytest.raises(UsageError) as caught:
        create_own_optimizer(name, create_network("mlp", (28, 28, 1), 10))
    error = str(caught.value)
    print(f"error: {error}")
    assert error.startswith(f"--optimizer={Path.cwd()}/own.py:create: ")
    assert message in error
    assert "import optax\n  def create():\n" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onw.py:Network", "there is no file {cwd}/onw.py (did you mean own.py?)"),
        ("nets/own.py:Network", "there is no file {cwd}/nets/own.py\n"),
        ("folder.py:Network", "{cwd}/folder.py cannot be read: Is a directory"),
        ("nets.own:Network", "there is no module nets in {cwd}, on PYTHONPATH or among the"),
        ("trainer.own:Network", "there is no module trainer.own in {cwd}, on PYTHONPATH or"),
        ("trainer.step.networks:CN", "networks has no CN (did you mean CNN?)"),
    ],
)
def test_names_of_nothing(name: str, message: str) -> None:
    Path("own.py").write_text(NETWORK)
    Path("folder.py").mkdir()
    with pytest.raises(UsageError) as caught:
        create_network(TrainConfig(model=name).model, (28, 28, 1), 10)
    print(f"error: {caught.value}")
    assert message.format(cwd=Path.cwd()) in str(caught.value)


def test_a_module_that_is_installed() -> None:
    own, built_in = (
        create_network(name, (28, 28, 1), 10) for name in ("trainer.step.networks:MLP", "mlp")
    )
    assert_same_bits(own.init(jax.random.key(0)), built_in.init(jax.random.key(0)))
    assert (own.built_in, built_in.built_in) == (False, True)
