"""The augmentation of a run by name; one of the user's own is tried before any work is done."""

from typing import Any

import jax
import jax.numpy as jnp

from trainer.config.own import is_own
from trainer.step import own
from trainer.step.augmentation import SHIFT, Augmentation, shift

# Of the trial that finds numbers which are drawn anew whenever the function is traced.
_TRIALS = 4


def create_augmentation(name: str, image_shape: tuple[int, int, int]) -> Augmentation | None:
    """Return the augmentation called `name`, or None for none.

    Args:
      name: "" (none), "shift", or that of one of the user's own; see `config.own`.
      image_shape: (H, W, C) of an example.

    Raises:
      KeyError: none has that name.
      UsageError: it is the user's own and not usable; the message shows the form.
    """
    if not name:
        return None
    if is_own(name):
        return _create_own(name, image_shape)
    return Augmentation({SHIFT: shift}[name], built_in=True)


def _create_own(name: str, image_shape: tuple[int, int, int]) -> Augmentation:
    """Return an augmentation of the user's own, tried on shapes alone."""
    found = own.load(f"--augment={name}", _form(name, image_shape))
    function = name.rpartition(":")[2]
    if not callable(found.value):
        raise found.refusal(f"{function} is of type {type(found.value).__name__}, and no function")
    found.check_takes(found.value, f"{function}(key, image)", None, None)
    augmentation = Augmentation(found.value)
    keys = jax.eval_shape(
        lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), own.TRIAL_BATCH)
    )
    images = jax.ShapeDtypeStruct((own.TRIAL_BATCH, *image_shape), jnp.float32)
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    with found.explained(f"{function}(key, image)"):
        # First alone, as only arrays come out of a vmap, and whatever it is of becomes one.
        result = jax.eval_shape(found.value, jax.eval_shape(lambda all: all[0], keys), image)
    _check_result(found, function, result, image)
    with found.explained(f"{function}(key, image)"):
        jax.eval_shape(augmentation, keys, images)
        programs = {_lower_anew(augmentation, keys, images) for _ in range(_TRIALS)}
    if len(programs) > 1:
        raise found.refusal(
            f"{function}(key, image) is another function whenever it is compiled: it draws numbers "
            "with numpy.random or random, which would be the same in every step; draw them "
            "with jax.random, from the key"
        )
    return augmentation


def _check_result(found: own.Own, function: str, result: Any, image: jax.ShapeDtypeStruct) -> None:
    """Refuse what is no image like the one that was given."""
    expected = f"it must return the image, {own.describe_array(image)}, changed"
    if not isinstance(result, jax.ShapeDtypeStruct):
        kind = "None" if result is None else type(result).__name__
        raise found.refusal(f"{function} returns {kind}, no array; {expected}")
    if result.shape != image.shape:
        raise found.refusal(
            f"{function} returns {own.describe_array(result)}; {expected}: it is called for one "
            "image at a time, and keeps its shape"
        )
    if result.dtype != image.dtype:
        raise found.refusal(
            f"{function} returns {own.describe_array(result)}; {expected}: end it with "
            ".astype(image.dtype)"
        )


def _lower_anew(augmentation: Augmentation, keys: Any, images: Any) -> str:
    """Return the program that the function becomes, with all constants, traced once more."""

    def untraced(keys: jax.Array, images: jax.Array) -> jax.Array:
        return augmentation(keys, images)

    return jax.jit(untraced).lower(keys, images).as_text()


def _form(name: str, image_shape: tuple[int, int, int]) -> str:
    """Return what an augmentation of the user's own looks like, for this data set."""
    height, width, channels = image_shape
    return f"""an augmentation of your own looks like this (docs/augmentation.md has another one):
  import jax
  import jax.numpy as jnp
  def {name.rpartition(":")[2]}(key, image):
      # image float32[{height},{width},{channels}], pixels in [0, 1]; key draws what is random
      return jnp.where(jax.random.bernoulli(key), image, image[:, ::-1])
  it is called for one image at a time and compiled: use jnp.where in place of if"""
