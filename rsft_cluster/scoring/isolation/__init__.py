"""Constraints in processes of their own, which can be killed: a hang, a crash or a memory bomb costs one verdict.

    Pool (scoring actor) -- asks --> fork server -- forks --> workers <-- candidates, outcomes --> Pool

Why not threads or signals: a thread cannot be ended, and SIGALRM works in no thread but the main one and ends no
loop in C. Why not a pool that knows only whole tasks: the fork server has the constraints imported and built, so that a
worker that was killed is replaced in milliseconds; and a worker says which candidate it is at, so that many short
calls share one message while each has its own deadline.
"""
