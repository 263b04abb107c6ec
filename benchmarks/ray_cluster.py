"""A Ray cluster on one machine for ray_cards.py, whose nodes can be killed, and what is seen of its actors."""

import os
import threading

import common
from multi_gpu import used_memory
from serve_load import python_path

STORE = 256 * 1024 * 1024


def processes(word):
    """Process ids of Ray's actors whose title has this word."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    title = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if title.startswith("ray::") and word in title:
                found.append(int(name))
    return sorted(found)


class Watch(threading.Thread):
    """While it runs: the largest growth of our cards' memory, MiB, and the most actors at a time."""

    def __init__(self, word, ids):
        super().__init__(daemon=True)
        self._word, self._stop_now = word, threading.Event()
        self._ours = {"cuda:%d" % place for place in range(len(ids))}  # the first that are visible
        self._before = used_memory()
        self.grown, self.actors = {}, set()
        self.most = 0

    def run(self):
        while not self._stop_now.wait(0.2):
            for card, used in used_memory().items():
                if card in self._ours:  # others may work on others
                    self.grown[card] = max(self.grown.get(card, 0), used - self._before.get(card, 0))
            here = processes(self._word)
            self.actors.update(here)
            self.most = max(self.most, len(here))

    def finish(self):
        self._stop_now.set()
        self.join()
        return {
            "actors_at_a_time": self.most, "actors_in_all": len(self.actors),
            "cards_at_work": sum(grown >= 100 for grown in self.grown.values()) if self.grown else None,
        }  # fmt: skip


class RayCluster:
    """A head without cards and a node for each card; on the CPU nodes of two processors."""

    def __init__(self, device, ids):
        import ray
        from ray.cluster_utils import Cluster

        os.environ["PYTHONPATH"] = os.pathsep.join([common.HERE, python_path()])
        os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
        self._on_cards = device != "cpu"
        self._made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False},
        )
        self.nodes = {card: self._node(card) for card in ids}
        ray.init(address=self._made.address, logging_level="error", log_to_driver=False)

    def _node(self, card):
        if not self._on_cards:
            return self._made.add_node(num_cpus=2, num_gpus=0, object_store_memory=STORE)
        return self._made.add_node(
            num_cpus=3, num_gpus=1, object_store_memory=STORE, env_vars={"CUDA_VISIBLE_DEVICES": card}
        )

    def kill_node(self):
        """Kills one node with all of its processes. Where no other has a card, a new node joins with it."""
        card, node = sorted(self.nodes.items())[-1]
        self._made.remove_node(node, allow_graceful=False)
        del self.nodes[card]
        if not self.nodes:
            self.heal([card])

    def heal(self, ids):
        for card in ids:
            if card not in self.nodes:
                self.nodes[card] = self._node(card)

    def stop(self):
        import ray

        ray.shutdown()
        self._made.shutdown()
