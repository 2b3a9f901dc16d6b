"""Mathematical equality: notation read, quantities and algebra compared."""
