"""Docstring (Heimersheim and Janiak 2023): the next argument of a Python function in its documentation.

    clean      def port(self, load, size, file, last):
                   \"\"\"oil column piece

                   :param load: crime population
                   :param size: unit dark
                   :param                                → file, not load, size or last

Corruptions: `random` has other argument names in the definition and others again in the docstring (their
"random_random", used by Conmy et al. 2023); `random_answer` has another name in the place of the answer only;
`random_doc` has other names in the docstring only, so that nothing says which argument was last.

There is one family of templates, the pattern of the paper's code prompts, whose positions its circuit is stated in
(`B_def+1` is the token behind the second argument of the definition); `documented` varies how long it is.

The metric is the logit difference, as in the original; it swept it over 1e-4 … 1. On KL, 0.01 gave it the published
circuit of 130 edges, with nine in ten of those found by hand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.settings import option
from acdc.tasks._common import distinct_pairs, fill, partners, words_of
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("random", "random_answer", "random_doc")
LETTERS = "ABCD"  # arguments in order, as their labels call them: A_def … in the definition, A_doc … in the docstring
FUNCTIONS = words_of("port update build run send parse test check start")
ARGUMENTS = words_of(
    "load size file last name value index key path text line node list user data code date page image label model count"
    " state field event item group order title limit"
)
WORDS = words_of(
    "oil column piece crime population unit dark water city law green stone river paper music window winter garden"
    " bridge summer forest table metal north"
)


@dataclass(frozen=True)
class Docstring(TaskSettings):
    """Docstring: the next argument of a Python function in its documentation"""

    name: str = "docstring"
    corruption: str = option(
        "random",
        "random: other names everywhere; random_answer: another answer; random_doc: other names in the docstring",
        CORRUPTIONS,
    )
    documented: int = option(2, "arguments documented before the one asked for: 1 to 3", (1, 2, 3))

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        functions = tokenizer.words(FUNCTIONS, "function names", notes, at_least=1)
        arguments = tokenizer.words(ARGUMENTS, "argument names", notes, at_least=12)
        descriptions = tokenizer.words(WORDS, "words", notes, at_least=9)
        rng = random.Random(self.seed)
        documented, asked = LETTERS[: self.documented], LETTERS[self.documented]
        template = _template(documented, asked)
        in_definition, in_docstring = [f"{x}_def" for x in documented + asked], [f"{x}_doc" for x in documented]
        corrupted_slots = {
            "random": in_definition + in_docstring,
            "random_answer": [f"{asked}_def"],
            "random_doc": in_docstring,
        }[self.corruption]

        def draw() -> Pair:
            names = rng.sample(arguments, 12)
            words = dict(zip((*in_definition, "rest"), names, strict=False))
            words |= {slot: words[slot.replace("doc", "def")] for slot in in_docstring}
            others = dict(zip(corrupted_slots, names[len(in_definition) + 1 :], strict=False))
            words |= {f"w{i}": word for i, word in enumerate(rng.sample(descriptions, 9))}
            words["function"] = rng.choice(functions)
            clean = fill(template, words)
            unused = [name for name in arguments if name not in words.values()]

            def another() -> str:
                names = rng.sample(unused, len(corrupted_slots))
                return fill(template, words | dict(zip(corrupted_slots, names, strict=True))).text

            at = {slot: clean.last(slot, tokenizer) for slot in in_definition + in_docstring}
            return Pair(
                clean.text,
                partners(self, fill(template, words | others).text, another),
                answers=[f" {words[f'{asked}_def']}"],
                wrong_answers=[f" {words[slot]}" for slot in (*in_definition[:-1], "rest")],
                labels={**at, "B_def+1": at["B_def"] + 1, "end": -1},
            )

        return Task(
            "docstring",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.01},
            notes=notes,
        )


def _template(documented: str, asked: str) -> str:
    """The prompt with slots A_def, A_doc, …, `rest` for the last argument, and w0, w1, … for the words between."""
    signature = ", ".join(f"{{{letter}_def}}" for letter in documented + asked)
    lines = [f"    :param {{{x}_doc}}: {{w{2 * i + 3}}} {{w{2 * i + 4}}}\n" for i, x in enumerate(documented)]
    return f'def {{function}}(self, {signature}, {{rest}}):\n    """{{w0}} {{w1}} {{w2}}\n\n{"".join(lines)}    :param'
