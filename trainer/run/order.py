"""The order of the data: the batches of an epoch, on the devices or for the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from trainer import devices
from trainer.run.job import Job
from trainer.step import epoch_batches


def create_epoch_batches(job: Job) -> jax.stages.Wrapped:
    """Return the jitted function from a step to the batches of the epoch that it lies in.

    Returns:
      epoch_batches(step int32[]) -> int32[steps_per_epoch, B], axis 1 cut over the devices; row
      step % steps_per_epoch is the batch of that step.
    """

    def at(step: jax.Array) -> jax.Array:
        epoch = step // job.plan.steps_per_epoch
        return epoch_batches(job.config.seed, epoch, job.source.num_train, job.config.batch_size)

    return jax.jit(at, out_shardings=devices.sharded(job.mesh, axis=1))


def compile_epoch_on_host(job: Job) -> Callable[[int], np.ndarray]:
    """Return the compiled function from an epoch to its batches, for the host to read.

    It runs on one device of this process and exchanges nothing, so that each process may call it
    when it needs to, from any thread.

    Returns:
      epoch -> int32[steps_per_epoch, B]; row i is the batch of the epoch's step i.
    """
    device = job.mesh.local_devices[0]
    config, num_train = job.config, job.source.num_train

    def at(epoch: jax.Array) -> jax.Array:
        return epoch_batches(config.seed, epoch, num_train, config.batch_size)

    sharding = jax.sharding.SingleDeviceSharding(device)
    epoch = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    program = devices.compile_quickly(jax.jit(at).lower(epoch), job.mesh)
    return lambda epoch: np.asarray(program(jax.device_put(np.int32(epoch), device)))
