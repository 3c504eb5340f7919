"""A Slurm submission file that starts Ray on its allocation: `--slurm FILE`.

One task per node: the first node's is the head and runs the same command with
`--ray auto`; the others join it. Never run by us on a Slurm cluster; the text
is checked by a shell and by a test with stand-ins for srun and ray.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from semopo_tf.experiments.runner import ROOT

HEADER = '''#!/bin/bash
# Written by run.py reproduce --slurm. Put your account and partition in, then
# submit it; submitted again, it goes on with what is missing.
#SBATCH --job-name=semopo
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=48:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output={output}
##SBATCH --account=…
##SBATCH --partition=…
set -eu
cd {here}
PYTHON={python}
PORT=6379
'''

# The sweep gets SIGTERM 300 s before the end: every run saves, the same file
# submitted again goes on.
BODY = '''RAY="$PYTHON -m ray.scripts.scripts"
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ADDRESS="$HEAD:$PORT"

# Others on these machines could run code in a cluster without a token.
export RAY_AUTH_MODE=token
$RAY get-auth-token --generate > /dev/null

# A step does not take over the cores of its job by itself.
STEP="--overlap --cpus-per-task=$SLURM_CPUS_PER_TASK"
srun $STEP --nodes=1 --ntasks=1 -w "$HEAD" \\
  $RAY start --head --port=$PORT --block &
sleep 20
OTHERS=$((SLURM_JOB_NUM_NODES - 1))
if [ "$OTHERS" -gt 0 ]; then
  srun $STEP --nodes=$OTHERS --ntasks=$OTHERS --exclude="$HEAD" \\
    $RAY start --address="$ADDRESS" --block &
  sleep 10
fi

export RAY_ADDRESS="$ADDRESS"
"$PYTHON" {run} {command} &
SWEEP=$!
trap 'kill -TERM $SWEEP' TERM
CODE=0
wait $SWEEP || CODE=$?
if kill -0 $SWEEP 2>/dev/null; then wait $SWEEP || CODE=$?; fi
exit $CODE
'''


def write(path: Path, command: Sequence[str], nodes: int, out: Path) -> None:
    """Write the file for `run.py COMMAND …` on `nodes` machines.

    It runs in the present folder, from which the command's paths count.
    """
    fields = {'nodes': nodes, 'here': shlex.quote(str(Path.cwd())),
              'run': shlex.quote(str(ROOT / 'run.py')),
              'output': out / 'slurm-%j.log',
              'python': shlex.quote(sys.executable),
              'command': shlex.join(command)}
    path.write_text(HEADER.format(**fields) + BODY.format(**fields))
    path.chmod(0o755)
    out.mkdir(parents=True, exist_ok=True)  # Slurm does not make it


def same_command(arguments: Sequence[str]) -> list[str]:
    """The command line without what chooses where it runs, on Ray."""
    kept, skip = [], False
    for argument in arguments:
        name = argument.split('=')[0]
        if skip:
            skip = False
        elif name in ('--slurm', '--nodes', '--ray', '--jobs'):
            skip = '=' not in argument
        elif name != '--serial':
            kept.append(argument)
    return [*kept, '--ray', 'auto']
