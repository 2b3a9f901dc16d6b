"""How good a policy is, and whether it replaces the one before: figures, fairness, alarms, promotion rules.

figures.py     pass@1, pass@k and their companions over held-out prompts
fairness.py    decisions by protected values
diversity.py   distinct n-grams, self-BLEU
alarms.py      signs of collapse that may hold a promotion
promotion.py   the promotion rules
"""
