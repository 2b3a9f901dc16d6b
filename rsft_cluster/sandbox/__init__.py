"""A sandbox for code that a model wrote: `sandbox.Sandbox` runs it, `probe` says what the machine can confine it with."""
