"""Greedy edits of code, most of which stands in the prompt already: drafts from its n-grams against one by one."""

from __future__ import annotations

import time

import mlx.core as mx

from benchmarks.paired import OURS, CannotMeasure, Result, Row, interleave
from benchmarks.sides import CHUNKS, demo, empty_peer, generate_step

NEW_TOKENS = 128
FUNCTION = '''
def summarise(orders, prices, discounts, currency="EUR"):
    """Totals of all orders by customer, after discounts, from the largest to the smallest."""
    totals = {}
    counts = {}
    unknown = []
    for order in orders:
        customer = order["customer"]
        if customer not in totals:
            totals[customer] = 0.0
            counts[customer] = 0
        for item in order["items"]:
            name = item["name"]
            if name not in prices:
                unknown.append(name)
                continue
            price = prices[name]
            quantity = item["quantity"]
            total = price * quantity
            if name in discounts:
                rate = discounts[name]
                if quantity >= rate["from"]:
                    total = total * (1 - rate["percent"] / 100)
            totals[customer] += total
            counts[customer] += quantity
        if order.get("shipping"):
            totals[customer] += order["shipping"]
        if order.get("returned"):
            for item in order["returned"]:
                name = item["name"]
                if name in prices:
                    totals[customer] -= prices[name] * item["quantity"]
                    counts[customer] -= item["quantity"]
    lines = []
    for customer in sorted(totals, key=totals.get, reverse=True):
        total = round(totals[customer], 2)
        count = counts[customer]
        if count == 0:
            continue
        average = round(total / count, 2)
        lines.append({
            "customer": customer,
            "total": total,
            "count": count,
            "average": average,
            "currency": currency,
        })
    if unknown:
        names = sorted(set(unknown))
        lines.append({"customer": None, "unknown": names})
    whole = sum(line["total"] for line in lines if line["customer"])
    pieces = sum(line["count"] for line in lines if line["customer"])
    lines.append({
        "customer": "everybody",
        "total": round(whole, 2),
        "count": pieces,
        "average": round(whole / pieces, 2) if pieces else 0.0,
        "currency": currency,
    })
    return lines
'''.strip()
EDITS = (("customer", "client"), ("totals", "sums"), ("orders", "sales"))


def measure(rounds: int) -> Result:
    """ms per token after the first."""
    sides, llm = demo()
    plain: list[float] = []
    drafted: list[float] = []
    theirs: list[float] = []
    accepted = {}
    for old, new in EDITS:
        ids = llm.encode(_prompt(old, new))
        answers: dict[str | None, list[int]] = {}

        def ours(draft: str | None, old: str = old, ids: list[int] = ids, answers: dict = answers) -> float:  # type: ignore[type-arg]
            llm.draft = draft  # type: ignore[attr-defined]
            completion = llm.generate(ids, max_tokens=NEW_TOKENS, temperature=0.0)
            answers[draft] = completion.tokens
            if draft:
                stats = completion.stats
                accepted[old] = {"drafted": stats.drafted_tokens, "accepted": stats.accepted_tokens}  # type: ignore[attr-defined]
            return 1e3 / completion.stats.decode_tps

        columns = interleave(
            rounds, lambda o=ours: o("ngram"), lambda o=ours: o(None), lambda i=ids: _theirs(sides.theirs, i)
        )
        if answers["ngram"] != answers[None]:
            raise CannotMeasure("With drafts the greedy tokens are others than without: that is an error, not a speed.")
        for all_of_them, column in zip((drafted, plain, theirs), columns, strict=True):
            all_of_them += column
    rows = [
        Row.of("demo, code edits", "ms", drafted, plain, 1.5, f"{OURS} without drafts"),
        Row.of("demo, code edits", "ms", drafted, theirs, 1.0),
    ]
    return Result("speculation", rows, CHUNKS, {"edits": dict(EDITS), "drafts": accepted, "new_tokens": NEW_TOKENS})


def _prompt(old: str, new: str) -> str:
    """Begun far enough that a small model knows what is wanted, and ended at the end of a line, not behind it: the
    newline and the spaces that follow it are one token.
    """
    begun = "\n".join(FUNCTION.replace(old, new).splitlines()[:12])
    return f"A function:\n\n{FUNCTION}\n\nThe same function with {old} renamed to {new}:\n\n{begun}"


def _theirs(model: object, ids: list[int]) -> float:
    """mlx-lm without drafts, for it has none that need no second model."""
    steps = generate_step(mx.array(ids), model, max_tokens=NEW_TOKENS, prompt_cache=empty_peer(model))
    next(steps)
    start = time.perf_counter()
    count = sum(1 for _ in steps)
    return 1e3 * (time.perf_counter() - start) / count
