"""Every round of a config: what `ray job submit`, sbatch and KubeRay execute. The same as `rsft run`."""

import sys

from rsft_cluster.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
