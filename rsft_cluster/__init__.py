"""Rejection sampling fine-tuning on Ray: sample, score, accept, train, evaluate, promote; again and again."""
