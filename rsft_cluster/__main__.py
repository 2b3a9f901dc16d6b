"""`python -m rsft_cluster` is `rsft`."""

from rsft_cluster.cli import main

main()
