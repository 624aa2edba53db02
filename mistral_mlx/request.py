"""One answer that was asked for: what is to be read, how to answer, and what its answer becomes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mistral_mlx.answer import Answer
from mistral_mlx.completion import Chunk
from mistral_mlx.engine.choice import Token
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.memory import Memory
from mistral_mlx.text.grammar import FormMatcher


@dataclass(eq=False)
class Request:
    """A request that was checked, to be answered once: its answer is made here.

    Attributes:
        memory: what it takes alone.
        begun: how many of the ids, the last, are the beginning of the answer.
        score_prompt: to find how likely each of the prompt's own ids is, with so many of the likeliest in its place.
        only_read: nothing is to be generated.
        prompt_scores: those of ids[1:], once the prompt has been read.
    """

    ids: list[int]
    params: SamplingParams
    answer: Answer
    memory: Memory
    constraint: FormMatcher | None = None
    begun: int = 0
    score_prompt: int | None = None
    only_read: bool = False
    prompt_scores: list[Token] = field(default_factory=list)

    def again(self, seed: int) -> Request:
        """The same, to be answered with another seed. Neither has begun."""
        params, constraint = replace(self.params, seed=seed), self.constraint and self.constraint.copy()
        answer = self.answer.again(params, constraint)
        return replace(self, params=params, answer=answer, constraint=constraint, prompt_scores=[])


# What happens to a request: a piece of its answer, of which the last has stats, or the error that ends it.
Event = tuple[Request, Chunk | Exception]
