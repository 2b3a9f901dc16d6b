"""What people see: progress while a run works, tables when a round is done. Reads records, decides nothing."""
