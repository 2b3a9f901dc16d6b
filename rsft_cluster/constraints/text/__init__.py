"""Constraints on text: language, words, personal data, repetition, patterns."""
