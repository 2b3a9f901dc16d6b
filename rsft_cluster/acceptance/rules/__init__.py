"""The acceptance rules that are built in, a file each."""
