"""Candidates made elsewhere become the first round of a run: `rsft import`.

rows.py     from a line to its prompt and candidates, or why not    (no files, no tokens)
spool.py    candidates by prompt, however they are spread           (a temporary database: memory does not grow)
usable.py   whether the run can use them                        (its policy's vocabulary, its rule and losses)
tokens.py   token ids where a file brings none                      (the policy's tokenizer)
bring.py    the round: planned, judged, committed and sealed like any other
"""
