"""`python -m rsft_cluster` is `rsft`."""

from rsft_cluster.cli.app import main

main()
