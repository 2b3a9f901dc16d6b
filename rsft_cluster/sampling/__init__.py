"""PROMPT -> CANDIDATE: a unit's prompts put to the policy, each draw with its own keyed stream.

unit_sampler.py   the prompts of a unit in the order of its plan
adaptive/         rejections taken off the proposal while a prompt is answered
"""
