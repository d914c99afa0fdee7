"""A Grid in this process, which hands messages straight to a ClientApp."""

from __future__ import annotations

import copy

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid


class DirectGrid(Grid):
    """`nodes` nodes that run `app` one after another. dead: nodes that never answer. log: all messages sent."""

    def __init__(self, app, nodes, run_config=None, node_configs=None):
        self.app = app
        self.ids = [100 + 7 * i for i in range(nodes)]
        configs = node_configs or [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
        self.contexts = {
            node: Context(
                run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config=run_config or {}
            )
            for node, config in zip(self.ids, configs, strict=True)
        }
        self.dead = set()
        self.log = []

    run = property(lambda self: None)

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.ids)

    def get_nodes(self):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.log.append((message.metadata.message_type, node))
            if node in self.dead:
                continue
            try:
                replies.append(copy.deepcopy(self.app(copy.deepcopy(message), self.contexts[node])))
            except Exception as error:  # as Flower does
                replies.append(Message(Error(code=0, reason=repr(error)), reply_to=message))
        return replies[::-1]  # the order of answers must decide nothing
