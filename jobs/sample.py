"""The first unfinished round of a config up to accepted samples. The same as `rsft sample`."""

import sys

from rsft_cluster.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["sample"]
    main()
