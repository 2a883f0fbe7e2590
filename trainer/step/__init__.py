"""What the devices execute: networks, optimizers, batches, the train step and the evaluation."""

from trainer.step.batches import epoch_batches as epoch_batches
from trainer.step.eval_step import create_evaluate as create_evaluate
from trainer.step.eval_step import mean_metrics as mean_metrics
from trainer.step.examples import Examples as Examples
from trainer.step.examples import abstract_examples as abstract_examples
from trainer.step.examples import place_examples as place_examples
from trainer.step.functional import Network as Network
from trainer.step.networks import create_network as create_network
from trainer.step.optimizers import create_optimizer as create_optimizer
from trainer.step.own import digests_of_sources as digests_of_sources
from trainer.step.own_optimizer import create_own_optimizer as create_own_optimizer
from trainer.step.reductions import choose_reduction as choose_reduction
from trainer.step.replicas import create_replica_check as create_replica_check
from trainer.step.several_steps import choose_steps_per_call as choose_steps_per_call
from trainer.step.several_steps import create_train_steps as create_train_steps
from trainer.step.state import TrainState as TrainState
from trainer.step.state import abstract_train_state as abstract_train_state
from trainer.step.state import check_first_state as check_first_state
from trainer.step.state import create_train_state as create_train_state
from trainer.step.state import leaf_name as leaf_name
from trainer.step.state import match_leaves as match_leaves
from trainer.step.state import train_state_init as train_state_init
from trainer.step.train_step import Metrics as Metrics
from trainer.step.train_step import create_train_step as create_train_step
