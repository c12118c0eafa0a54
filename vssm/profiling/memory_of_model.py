"""`python -m vssm.profiling.memory_of_model JSON` prints `memory_here`, in a process that does nothing else."""

import json
import sys

from .models import Setup, memory_here

if __name__ == "__main__":
    question = json.loads(sys.argv[1])
    sys.stdout.write(f"{memory_here(Setup(**question.pop('setup')), **question)}\n")
