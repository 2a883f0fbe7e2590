"""Checkpoints by Orbax: written in the background, verified when read, the newest good found."""

from trainer.checkpoints.digests import float_bits as float_bits
from trainer.checkpoints.keeping import Keeping as Keeping
from trainer.checkpoints.recovery import Search as Search
from trainer.checkpoints.recovery import clear_the_way as clear_the_way
from trainer.checkpoints.recovery import find_newest as find_newest
from trainer.checkpoints.recovery import read_newest as read_newest
from trainer.checkpoints.recovery import read_step as read_step
from trainer.checkpoints.recovery import set_aside_if_damaged as set_aside_if_damaged
from trainer.checkpoints.recovery import stored_steps as stored_steps
from trainer.checkpoints.store import Checkpointer as Checkpointer
from trainer.checkpoints.store import Restored as Restored
