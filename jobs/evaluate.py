"""The first unfinished round of a config up to the challenger's evaluation. The same as `rsft evaluate`."""

import sys

from rsft_cluster.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["evaluate"]
    main()
