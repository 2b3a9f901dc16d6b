"""Candidates made elsewhere become the first round of a run: `rsft import`.

completions.py          from a line to its prompt and candidates, or why not    (no files, no tokens)
candidate_database.py   candidates by prompt, however they are spread           (temporary: memory does not grow)
requirements.py         whether the run can use them                            (vocabulary, rule and losses)
tokens.py               token ids where a file brings none                      (the policy's tokenizer)
import_round.py         the round: planned, judged, committed and sealed like any other
"""
