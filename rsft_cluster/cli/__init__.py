"""`rsft`: the command line. `app.py` holds the entrance, every other module a group of commands."""
