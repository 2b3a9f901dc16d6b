"""The Ray cluster: what a run asks of it, how it is joined, and jobs that are submitted to it."""
