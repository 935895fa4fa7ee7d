"""Prices and rounds a network by an executor, of which one worker may be killed in the middle of a task.

python -m tests.svd2onnx.executor_child EXECUTOR [lose]      prints the digest of all that was made
python -m tests.svd2onnx.executor_child EXECUTOR hopeless    every worker dies: prints the error
    python -m tests.svd2onnx.executor_child ray machine          as "lose", of two machines of which one goes
"""

import logging
import os
import signal
import sys
import threading
import time

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.compression.realize import realize
from svd2onnx.compute.executors import executor
from svd2onnx.compute.workers import finished
from svd2onnx.memo.records import digest
from svd2onnx.network.layers import discover
from svd2onnx.planning.candidates import candidates
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.values.errors import ExecutorError
from svd2onnx.values.schema import QuantSpec
from tests.svd2onnx.networks import Vectors, batches_of, seeded
from tests.svd2onnx.processes import descendants, parent_of

_kept: list[bytes] = []
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


def kill_one(name: str, parent: int) -> None:
    """Kill a worker of the process ``parent`` as soon as there is one."""
    while parent_of(parent):
        busy = [pid for pid, line in descendants(parent).items() if BUSY[name] in line]
        if busy:
            os.kill(busy[-1], signal.SIGKILL)
            return
        time.sleep(0.02)


def die(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def grow(_item: int) -> int:
    """Keep 400 MB, for a good second: joblib replaces a worker that does."""
    _kept.append(b"1" * 400_000_000)
    time.sleep(1.1)
    return os.getpid()


def made_on_two_machines() -> str:
    """Of which one is killed in the middle of a task."""
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    other = cluster.add_node(**each)

    def kill_other() -> None:
        while not any(BUSY["ray"] in line for line in descendants(os.getpid()).values()):
            time.sleep(0.02)
        cluster.remove_node(other, allow_graceful=False)

    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with executor("ray"):
            threading.Thread(target=kill_other, daemon=True).start()
            return made()
    finally:
        cluster.shutdown()


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
    if how == ["machine"]:
        sys.stdout.write(f"{made_on_two_machines()}\n")
        sys.exit()
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
                threading.Thread(target=kill_one, args=(name, os.getpid()), daemon=True).start()
            sys.stdout.write(f"{made()}\n")
