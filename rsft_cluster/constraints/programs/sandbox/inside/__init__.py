"""What runs inside a sandbox, as code that `interpreter` compiles: it imports nothing but builtins, `os` and `sys`."""
