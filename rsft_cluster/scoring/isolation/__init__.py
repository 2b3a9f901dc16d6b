"""Constraints in processes of their own, which can be killed: a hang, a crash or a memory bomb costs one verdict.

    pool (scoring actor) -- asks --> fork server -- forks --> workers <-- candidates, outcomes --> pool

Why not threads or signals: a thread cannot be killed, and SIGALRM works only in the main thread and does not end a
loop in C. Why not a pool of whole tasks: the fork server has the constraints imported and built, so that it replaces a
killed worker in milliseconds; and a worker records which candidate it is judging, so that many short calls share one
message while each has its own deadline.
"""
