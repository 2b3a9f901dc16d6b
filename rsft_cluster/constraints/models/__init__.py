"""Constraints that ask a model: classifiers, reward models, ensembles."""
