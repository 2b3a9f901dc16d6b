"""The first unfinished round of a config up to the trained challenger. The same as `rsft train`."""

import sys

from rsft_cluster.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
