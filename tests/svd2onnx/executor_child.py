"""Prices and rounds a network by an executor, of which one worker may be killed in the middle of a task.

python -m tests.svd2onnx.executor_child EXECUTOR [lose]      prints the digest of all that was made
python -m tests.svd2onnx.executor_child EXECUTOR hopeless    every worker dies: prints the error
"""

import logging
import os
import signal
import sys
import threading
import time

from svd2onnx.calibrate import calibrate
from svd2onnx.candidates import candidates
from svd2onnx.errors import ExecutorError
from svd2onnx.executors import executor
from svd2onnx.layers import discover
from svd2onnx.planner import uniform_plan
from svd2onnx.realize import realize
from svd2onnx.records import digest
from svd2onnx.schema import QuantSpec
from svd2onnx.workers import finished
from tests.svd2onnx.networks import Vectors, batches_of, seeded
from tests.svd2onnx.processes import descendants

BUSY = {"ray": "ray::PoolActor.run_batch", "processes": "LokyProcess"}
"""In the command line of a worker; Ray's tells that it is in the middle of a task."""


def made() -> str:
    network = seeded(Vectors)
    batches = batches_of(network)
    sites = discover(network, batches[0])
    statistics = calibrate(network, sites, batches, "mse", batches)
    menu = candidates(network, sites, statistics)
    layers = realize(network, sites, uniform_plan(sites, QuantSpec(4, 32)), statistics)
    return digest(menu, layers)


def kill_one(name: str) -> None:
    while True:
        busy = [pid for pid, line in descendants(os.getpid()).items() if BUSY[name] in line]
        if busy:
            os.kill(busy[-1], signal.SIGKILL)
            return
        time.sleep(0.02)


def die(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_ray() -> None:
    import ray

    ray.init(
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    name, *how = sys.argv[1:]
    if name == "ray":
        start_ray()
    with executor(name):
        if how == ["hopeless"]:
            try:
                list(finished(die, range(4), lambda item: (item,)))
            except ExecutorError as error:
                sys.stdout.write(f"{error}\n")
        else:
            if how == ["lose"]:
                threading.Thread(target=kill_one, args=(name,), daemon=True).start()
            sys.stdout.write(f"{made()}\n")
