"""The command line: absl flags to TrainConfig, the commands, the exit statuses."""

from trainer.cli.main import main as main
from trainer.cli.main import run as run
