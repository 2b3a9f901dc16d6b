"""Everything about a config that can be found out without a cluster: `rsft check`."""
