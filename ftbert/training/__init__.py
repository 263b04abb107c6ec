"""What `ftbert.finetune` is made of: data, batches, graph, optimizer, the loop, metrics and the report."""

__all__ = []  # type: list
