"""A stage of a config's first unfinished round, or with `run` all of its rounds, as a script to submit.

    ray job submit -- python jobs/stage.py run|sample|train|evaluate CONFIG [OPTIONS]

The same as `rsft` followed by the stage's name.
"""

import sys

from rsft_cluster.cli.app import main

STAGES = ("run", "sample", "train", "evaluate")

if __name__ == "__main__":
    if sys.argv[1:2] not in ([stage] for stage in STAGES):
        sys.exit(f"expected python jobs/stage.py {'|'.join(STAGES)} CONFIG [OPTIONS]")
    main()
