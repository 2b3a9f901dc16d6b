"""A sandbox for code that a model wrote: `sandbox.Sandbox` runs it, `probe` says what this machine confines it with."""
