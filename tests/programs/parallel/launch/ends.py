# SPDX-License-Identifier: Apache-2.0
"""End in the way that the argument names; where only one rank fails, the others would wait for ever."""

import os
import signal
import subprocess
import sys
import threading
import time

from aiperf_mpi.ending import watch
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.ranks import check_shared_memory, split
from aiperf_mpi.parallel.launch.start import step

how = sys.argv[1]
if how == "stopped":
    watch.start()


def die():
    raise RuntimeError("the thread of this rank is broken")


def hang():
    wait(job.MPI.COMM_WORLD.Ibarrier())


with job.job() as world:
    last = world.rank == world.size - 1
    if how.startswith("agree"):
        # The last rank knows the code, the others have 0.
        job.agreed_exit(world, int(how.removeprefix("agree")) if last else 0)
    elif how == "raise":
        if last:
            raise ValueError("this rank is broken")
        hang()
    elif how == "unheard":
        # The launcher's process on this node does not read for a second, and then has the last output and the
        # abort.
        if last:
            launcher = os.getppid()
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {launcher}"], start_new_session=True)
            os.kill(launcher, signal.SIGSTOP)
            raise ValueError("this rank is broken")
        hang()
    elif how == "thread":
        if last:
            threading.Thread(target=die).start()
        hang()
    elif how == "leave":
        if last:
            sys.exit(0)
        hang()
    elif how == "alike":
        job.raise_alike(world, f"rank {world.rank} lacks something" if world.rank else None)
    elif how == "alone":
        job._ALIKE_SECONDS = 1.0
        if last:
            raise LaunchError("only the last rank raises this")
        hang()
        time.sleep(60)
    elif how == "memory":
        check_shared_memory(split(world), 2**50, 0)
    elif how == "split":
        split(world, host=sys.argv[2] if len(sys.argv) > 2 else None)
        job.agreed_exit(world, 0)
    elif how == "stopped":
        # One rank stops inside a collective call, in which the others wait.
        with step("windows"):
            if world.rank == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGSTOP)
            world.Barrier()
    elif how == "resumed":
        # Rank 0 waits for the last one, and is stopped meanwhile.
        if world.rank == 0:
            stop = f"sleep 0.5; kill -STOP {os.getpid()}; sleep 5; kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", stop], start_new_session=True)
        if last:
            time.sleep(7)
        with step("windows"):
            job.agreed_exit(world, 0)
    elif how == "sleep":
        time.sleep(60)
