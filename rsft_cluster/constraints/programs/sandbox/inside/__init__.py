"""The code that runs inside a sandbox, compiled by `interpreter`: it imports nothing but builtins, `os` and `sys`."""
