"""Several processes as one run: who they are, how they meet, agree, stop and end together."""

from trainer.processes.link import first_process_first as first_process_first
from trainer.processes.link import gather as gather
from trainer.processes.link import if_ended as if_ended
from trainer.processes.link import is_first as is_first
from trainer.processes.link import joined as joined
from trainer.processes.link import several as several
from trainer.processes.link import share as share
from trainer.processes.watchdog import Watchdog as Watchdog
