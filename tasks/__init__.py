"""The tasks, one file each; `TASKS` finds them, and those of one's own, by name."""

from __future__ import annotations

from acdc.doors import Door
from acdc.tasks.base import TaskSettings

TASKS: Door[TaskSettings] = Door(
    base=TaskSettings,  # type: ignore[type-abstract]
    built_in={
        "docstring": "acdc.tasks.docstring:Docstring",
        "factual_recall": "acdc.tasks.factual_recall:FactualRecall",
        "gate_and": "acdc.tasks.gate_and:GateAnd",
        "gate_or": "acdc.tasks.gate_or:GateOr",
        "gendered_pronoun": "acdc.tasks.gendered_pronoun:GenderedPronoun",
        "greater_than": "acdc.tasks.greater_than:GreaterThan",
        "induction": "acdc.tasks.induction:Induction",
        "ioi": "acdc.tasks.ioi:IOI",
        "pairs": "acdc.tasks.pairs:Pairs",
        "sentiment": "acdc.tasks.sentiment:Sentiment",
        "subject_verb_agreement": "acdc.tasks.subject_verb_agreement:SubjectVerbAgreement",
        "tracr_proportion": "acdc.tasks.tracr_proportion:TracrProportion",
        "tracr_reverse": "acdc.tasks.tracr_reverse:TracrReverse",
    },
    entry_points="acdc.tasks",
    what="a task",
)
