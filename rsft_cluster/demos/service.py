"""Customer service in English and Chinese: the task, its constraints, and worked replies that make mistakes.

    #K7R shipped +3d ¥40|When will it arrive?>Hello! Order #K7R arrives in 3 days. Thank you!$
    #K7R shipped +3d ¥40|能取消吗？>您好！订单#K7R不能取消。谢谢！$

The prompt is an order's record (number, status, days to delivery, amount) and a request, up to the `>`. A good reply
answers in the language of the request, opens and closes politely, copies the order number, states what the record
says, and promises nothing. Each constraint judges one of these alone, and a reply in the language that it is written
in: a mistake has one name. The places that they call fatal are exact (see `Verdict.fatal_at`); that of a missing
closing is the end of the text, where the token that ended it stands.

The worked replies are what a busy desk leaves behind: right in form, each kind of mistake in some of them.
"""

import json
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from string import ascii_uppercase, digits

from rsft_cluster.constraints.base import Candidate, Verdict

TITLE = "Customer service in two languages"
STATUSES = ("pending", "packed", "shipped")
MISTAKES = ("language", "opening", "number", "facts", "promise", "rambling", "closing")
MISTAKE_RATE = 0.1
"""Share of the worked replies that make each kind of mistake, independently of the others."""
SIZES = {"worked": 4000, "prompts": 800, "held_out": 200}


@dataclass(frozen=True)
class Language:
    """What may be said in a language; `{...}` are slots."""

    name: str
    letters: re.Pattern[str]
    """Letters that only this language has, those of order numbers left out."""
    requests: dict[str, tuple[str, ...]]
    """How each fact is asked for."""
    openings: tuple[str, ...]
    order: str
    """What stands before the order number."""
    statements: dict[str, str]
    """How each fact is stated, after the order number."""
    values: dict[str, str]
    """Words for the values of facts, where they are words."""
    promises: tuple[str, ...]
    rambling: str
    closings: tuple[str, ...]

    def phrases(self) -> Iterator[str]:
        """Yield all that texts in the language are made of."""
        yield from chain(*self.requests.values(), self.openings, self.promises, self.closings)
        yield from chain(self.statements.values(), self.values.values(), (self.order, self.rambling))

    def statement(self, fact: str, value: str) -> str:
        """Return the statement of a fact, as it follows the order number."""
        return self.statements[fact].format(self.values.get(value, value))


ENGLISH = Language(
    name="English",
    letters=re.compile(r"(?<![#\d])[A-Za-z]"),
    requests={
        "status": ("Where is my order?", "What is the status?"),
        "days": ("When will it arrive?", "How many days?"),
        "amount": ("I want a refund.", "Money back, please."),
        "cancelled": ("Please cancel it.", "Can I cancel?"),
    },
    openings=("Hello! ", "Hi! ", "Good day! "),
    order="Order #",
    statements={
        "status": " is {}.",
        "days": " arrives in {} days.",
        "amount": " is refunded with ¥{}.",
        "cancelled": " {} cancelled.",
    },
    values={"pending": "pending", "packed": "packed", "shipped": "shipped", "yes": "is", "no": "cannot be"},
    promises=(" Guaranteed!", " It is free!"),
    rambling=" We are here for you all day and night.",
    closings=(" Thank you!", " Have a nice day!"),
)
CHINESE = Language(
    name="Chinese",
    letters=re.compile("[\u4e00-\u9fff]"),
    requests={
        "status": ("订单到哪了？", "现在什么状态？"),
        "days": ("几天能到？", "什么时候送到？"),
        "amount": ("我要退款。", "请退钱。"),
        "cancelled": ("请取消订单。", "能取消吗？"),
    },
    openings=("您好！", "您好，", "你好！"),
    order="订单#",
    statements={"status": "{}。", "days": "还需{}天。", "amount": "退款¥{}。", "cancelled": "{}取消。"},
    values={"pending": "待处理", "packed": "已打包", "shipped": "已发货", "yes": "已", "no": "不能"},
    promises=("保证！", "免费！"),
    rambling="我们随时为您服务。",
    closings=("谢谢！", "祝您愉快！"),
)
LANGUAGES = (ENGLISH, CHINESE)
_NUMBER = (ascii_uppercase, digits, ascii_uppercase)
FORBIDDEN = re.compile("guarantee|free|promise|保证|免费|承诺", re.IGNORECASE)
"""What the policy lets nobody promise."""

END, PAD, CONTEXT = "$", "_", 160
_SIGNS = set(chain(*ENGLISH.phrases(), *CHINESE.phrases(), ascii_uppercase, digits, " #+d¥|>")) - set("{}")
SYMBOLS = "".join(sorted(_SIGNS)) + END + PAD
BASE_STEPS = 700
VARIANTS = {"rejected candidates count as well": ["training.rejection.weight=0.1"]}

_PROMPT = re.compile(r"#(?P<number>[A-Z]\d[A-Z]) (?P<status>\w+) \+(?P<days>\d)d ¥(?P<amount>\d\d)\|(?P<request>.+)>")


@dataclass(frozen=True)
class Order:
    """An order's record; `days` and `amount` in digits."""

    number: str
    status: str
    days: str
    amount: str

    def value(self, fact: str) -> str:
        """Return what is true: the field of that name, and for `cancelled` that shipped orders cannot be."""
        if fact == "cancelled":
            return "no" if self.status == "shipped" else "yes"
        return str(getattr(self, fact))


@dataclass(frozen=True)
class Inquiry:
    """A record and what is asked about it, in which language."""

    order: Order
    language: Language
    fact: str

    def prompt(self, request: str) -> str:
        """Return the prompt: the record, then one of the language's requests for the fact."""
        order = self.order
        return f"#{order.number} {order.status} +{order.days}d ¥{order.amount}|{request}>"


_REQUESTS = {
    request: (language, fact)
    for language in LANGUAGES
    for fact, requests in language.requests.items()
    for request in requests
}
_VALUES = {
    "status": STATUSES,
    "days": tuple("23456789"),
    "amount": tuple(f"{n}0" for n in range(1, 10)),
    "cancelled": ("yes", "no"),
}

_ASKED = ("status", "days", "days", "amount", "amount", "cancelled")
"""How often each fact is asked for: those that are copied from the record take longer to learn."""


def right_language(candidate: Candidate) -> Verdict:
    """Judge that the reply is in the language of the request, and in no other."""
    wanted = _inquiry(candidate).language
    other = CHINESE if wanted is ENGLISH else ENGLISH
    if stray := other.letters.search(candidate.completion):
        return _wrong(f"{stray.group()!r} is {other.name}; {wanted.name} was asked for", stray.start())
    if not wanted.letters.search(candidate.completion):
        return _wrong(f"has nothing in {wanted.name}")
    return Verdict.of(True, f"in {wanted.name}")


def polite_opening(candidate: Candidate) -> Verdict:
    """Judge that the reply begins with one of its language's openings."""
    text = candidate.completion
    openings = _written_in(text).openings
    if text.startswith(openings):
        return Verdict.of(True, "opens politely")
    place = _departure(text, openings)
    return _wrong(f"opens with {text[: place + 8]!r}, with none of {list(openings)}", place)


def right_number(candidate: Candidate) -> Verdict:
    """Judge that the order number is copied from the record."""
    number = _inquiry(candidate).order.number
    if (mention := _mention(candidate.completion)) is None:
        return _wrong("mentions no order")
    if mention[1] == number:
        return Verdict.of(True, f"order {number}, as in the record")
    place = mention.start(1) + _departure(mention[1], [number])
    return _wrong(f"order {mention[1]!r}; the record says {number}", place)


def true_facts(candidate: Candidate) -> Verdict:
    """Judge that what is said of the order answers the request with what the record says."""
    inquiry, text = _inquiry(candidate), candidate.completion
    if (mention := _mention(text)) is None:
        return _wrong("mentions no order, so states nothing")
    truth = _written_in(text).statement(inquiry.fact, inquiry.order.value(inquiry.fact))
    said = text[mention.end() :]
    if said.startswith(truth):
        return Verdict.of(True, f"states {truth.strip()!r}, as in the record")
    place = _departure(said, [truth])
    return _wrong(f"states {said[: len(truth)].strip()!r} where {truth.strip()!r} is true", mention.end() + place)


def no_promise(candidate: Candidate) -> Verdict:
    """Judge that nothing is promised that the policy does not allow."""
    if promise := FORBIDDEN.search(candidate.completion):
        return _wrong(f"promises {promise.group()!r}, which the policy does not allow", promise.start())
    return Verdict.of(True, "promises nothing")


def polite_closing(candidate: Candidate) -> Verdict:
    """Judge that the reply ends with one of its language's closings."""
    text = candidate.completion
    closings = _written_in(text).closings
    if text.endswith(closings):
        return Verdict.of(True, "closes politely")
    # Any text could still be closed politely, until it is ended.
    place = len(text) if candidate.finish_reason == "stop" else None
    return _wrong(f"ends with {text[-8:]!r}, with none of {[c.strip() for c in closings]}", place)


def reply(inquiry: Inquiry, rng: random.Random, mistakes: Collection[str] = ()) -> str:
    """Return a reply that makes exactly the given ones of MISTAKES."""
    language = inquiry.language
    if "language" in mistakes:
        language = CHINESE if language is ENGLISH else ENGLISH
    number, value = inquiry.order.number, inquiry.order.value(inquiry.fact)
    if "number" in mistakes:
        place = rng.randrange(len(number))
        number = number[:place] + rng.choice(_NUMBER[place].replace(number[place], "")) + number[place + 1 :]
    if "facts" in mistakes:
        value = rng.choice([v for v in _VALUES[inquiry.fact] if v != value])
    parts = [
        "" if "opening" in mistakes else rng.choice(language.openings),
        language.order + number + language.statement(inquiry.fact, value),
        rng.choice(language.promises) if "promise" in mistakes else "",
        language.rambling if "rambling" in mistakes else "",
        "" if "closing" in mistakes else rng.choice(language.closings),
    ]
    return "".join(parts)


def inquiries(rng: random.Random) -> Iterator[Inquiry]:
    """Yield inquiries about different orders, without end."""
    seen: set[Order] = set()
    while True:
        number = "".join(map(rng.choice, _NUMBER))
        order = Order(number, *(rng.choice(_VALUES[name]) for name in ("status", "days", "amount")))
        if order not in seen:
            seen.add(order)
            yield Inquiry(order, rng.choice(LANGUAGES), rng.choice(_ASKED))


def write_task(folder: Path, *, seed: int) -> None:
    """Write worked.jsonl, prompts.jsonl and held_out.jsonl: disjoint orders, drawn once by the seed."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = inquiries(rng)
    for name, size in SIZES.items():
        rows = []
        for inquiry in islice(drawn, size):
            row = {"prompt": inquiry.prompt(rng.choice(inquiry.language.requests[inquiry.fact]))}
            if name == "worked":
                row["completion"] = reply(inquiry, rng, [m for m in MISTAKES if rng.random() < MISTAKE_RATE])
            rows.append(row)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _inquiry(candidate: Candidate) -> Inquiry:
    found = _PROMPT.fullmatch(candidate.prompt)
    if found is None or found["request"] not in _REQUESTS:
        raise ValueError(
            f"{candidate.prompt!r} is no request; expected something like '#K7R shipped +3d ¥40|When will it arrive?>'"
        )
    language, fact = _REQUESTS[found["request"]]
    return Inquiry(Order(found["number"], found["status"], found["days"], found["amount"]), language, fact)


def _written_in(text: str) -> Language:
    return CHINESE if CHINESE.letters.search(text) else ENGLISH


def _mention(text: str) -> re.Match[str] | None:
    """Find the first order that is mentioned; its group 1 is the number."""
    return re.search(rf"{_written_in(text).order}([A-Z0-9]*)", text)


def _departure(text: str, allowed: Sequence[str]) -> int:
    """Return the place of the first character with which the text begins like none of the allowed ones."""
    return next((n for n in range(len(text)) if not any(one.startswith(text[: n + 1]) for one in allowed)), len(text))


def _wrong(reason: str, place: int | None = None) -> Verdict:
    return Verdict(0.0, False, reason, place)
