"""Short product texts under content rules: the task, those of its rules that are not built in, and soft scores.

    lamp: warm, small>This lamp is warm and small. It fits any room. Guests like it at once.$

The prompt names a product and two words that the text must say of it. Rules decide what passes: both words are said,
no superlative (which advertising law forbids in places), at most three sentences, nothing repeated, an end that is
one. Among what passes, soft scores prefer texts of a wanted length and varied words; an acceptance rule like
`boltzmann` turns them into probabilities, so that good texts are learned more often without others dying out.

The worked texts break each rule now and then, and are mostly shorter than wanted.
"""

import json
import random
import re
from collections.abc import Collection
from itertools import chain, islice, permutations, product
from pathlib import Path

from rsft_cluster.constraints.base import Candidate, Verdict

TITLE = "Product texts under content rules"
PRODUCTS = ("lamp", "chair", "kettle", "bag", "mug", "rug", "tent", "desk", "phone", "jar", "vase", "oven")
QUALITIES = ("warm", "small", "light", "bright", "clean", "quiet", "new", "round", "fresh", "plain", "handy", "old")
FIRST = ("This {0} is {1} and {2}.", "Our {0} is {1} and {2}.", "Meet the {1}, {2} {0}.")
_VERBS = ("fits", "suits", "brightens", "joins")
_PLACES = ("any room", "your home", "long trips", "busy mornings", "calm evenings", "each guest")
_PEOPLE = ("Guests", "Children", "Cooks", "Friends")
_FEELINGS = ("like", "choose", "enjoy", "keep")
_TIMES = ("at once", "every day", "for years")
MORE = tuple(f"It {verb} {place}." for verb, place in product(_VERBS, _PLACES)) + tuple(
    f"{who} {feel} it {when}." for who, feel, when in product(_PEOPLE, _FEELINGS, _TIMES)
)
SUPERLATIVES = ("It is the best.", "It is perfect.", "Nothing is cheaper.")
MISTAKES = ("keyword", "superlative", "rambling", "repetition", "ending")
MISTAKE_RATE = 0.12
"""Share of the worked texts that make each kind of mistake, independently of the others."""

SIZES = {"worked": 1000, "prompts": 300, "held_out": 150}
END, PAD, CONTEXT = "$", "_", 192
SYMBOLS = "".join(sorted(set(chain(*PRODUCTS, *QUALITIES, *FIRST, *MORE, *SUPERLATIVES, ":,> ")) - set("{}012"))) + (
    END + PAD
)
BASE_STEPS = 300
VARIANTS = {"every text that passes": ["acceptance.rule=all_passed"]}

_PROMPT = re.compile(r"(\w+): (\w+), (\w+)>")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"\s*([^.]+)\.")


def says_what_was_asked(candidate: Candidate) -> Verdict:
    """Judge that the text names the product and both words that the prompt gives."""
    asked = _PROMPT.fullmatch(candidate.prompt)
    if asked is None:
        raise ValueError(f"{candidate.prompt!r} asks for no text; expected something like 'lamp: warm, small>'")
    missing = [word for word in asked.groups() if word not in _words(candidate)]
    # Any text could still say it, until it is ended.
    place = len(candidate.completion) if missing and candidate.finish_reason == "stop" else None
    reason = f"does not say {', '.join(map(repr, missing))}" if missing else f"says {', '.join(asked.groups())}"
    return Verdict(float(not missing), not missing, reason, place)


def nothing_twice(candidate: Candidate) -> Verdict:
    """Judge that no word follows itself and no sentence comes twice."""
    text = candidate.completion
    if doubled := re.search(r"\b(\w+)\W+(\1)\b", text, re.IGNORECASE):
        return Verdict(0.0, False, f"{doubled[2]!r} follows itself", doubled.start(2))
    seen: set[str] = set()
    for sentence in _SENTENCE.finditer(text):
        if sentence[1] in seen:
            return Verdict(0.0, False, f"{sentence[1]!r} comes twice", sentence.end() - 1)
        seen.add(sentence[1])
    return Verdict.of(True, "nothing comes twice")


def near_length(candidate: Candidate, *, words: int) -> float:
    """Return 1 at the wanted number of words, less by 1 / `words` for every word more or fewer, and 0 at the least."""
    return max(0.0, 1 - abs(len(_words(candidate)) - words) / words)


def variety(candidate: Candidate) -> float:
    """Return the share of different words among all words, 0 where there are none."""
    words = _words(candidate)
    return len(set(words)) / len(words) if words else 0.0


def text(subject: tuple[str, str, str], rng: random.Random, mistakes: Collection[str] = ()) -> str:
    """Return a text on (product, quality, quality) that makes the given ones of MISTAKES and no other."""
    said = list(subject)
    if "keyword" in mistakes:
        said[rng.choice((1, 2))] = rng.choice([quality for quality in QUALITIES if quality not in subject])
    more = rng.sample(MORE, 3 if "rambling" in mistakes else rng.choices((0, 1, 2), weights=(3, 4, 2))[0])
    if "superlative" in mistakes:
        more[-1:] = [rng.choice(SUPERLATIVES)]
    words = rng.choice(FIRST).format(*said).split()
    if "repetition" in mistakes:
        words.insert(1, words[1])
    whole = " ".join([*words, *more])
    return whole.removesuffix(".") if "ending" in mistakes else whole


def write_task(folder: Path, *, seed: int) -> None:
    """Write worked.jsonl, prompts.jsonl and held_out.jsonl: disjoint prompts, drawn once by the seed."""
    rng = random.Random(seed)
    subjects = [(thing, *two) for thing in PRODUCTS for two in permutations(QUALITIES, 2)]
    rng.shuffle(subjects)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = iter(subjects)
    for name, size in SIZES.items():
        rows = []
        for subject in islice(drawn, size):
            row = {"prompt": "{}: {}, {}>".format(*subject)}
            if name == "worked":
                row["completion"] = text(subject, rng, [m for m in MISTAKES if rng.random() < MISTAKE_RATE])
            rows.append(row)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _words(candidate: Candidate) -> list[str]:
    return _WORD.findall(candidate.completion.lower())
