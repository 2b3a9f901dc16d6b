"""The audit trail: one line a candidate that says all a decision rests on, hash-chained, and replayed from itself.

lines.py     from a sealed round to its lines                       (reads the store)
chain.py     hashes, each over its line and the one before          (text in, text out)
replay.py    the decision again, from its line                      (pure)
verify.py    a run, or an exported file: chain, replay, and the whole round decided again
"""
