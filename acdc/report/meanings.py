"""What the numbers of a run mean."""

OWN_PAIRS = "on the pairs it was found on"  # where a search does better than on others

MEANINGS = {
    "clean": "the metric of the full model on the clean prompts",
    "corrupted": "the metric with no edge kept: every edge carries its ablated value",
    "circuit": "the metric with only the circuit's edges kept",
    "recovery": "(circuit − corrupted) / (clean − corrupted): 100% is as good as the full model",
    "accuracy": "how often the circuit's top token is an answer (without answers: the model's top token)",
    "accuracy_model": "the same for the full model",
    "agreement": "how often the circuit's top token is the full model's",
    "partner_recovery_min": "the least recovery with one corrupted partner of each clean prompt alone",
    "partner_recovery_max": "the largest",
    "kl": "KL(model ‖ circuit) of the next-token distributions, in nats: 0 is the same prediction",
    "edges_kept": "edges in the circuit",
    "edges_total": "edges in the model's computational graph",
    "scored": "edges that the method gave a score",
    "asked": "edges that the settings ask for",
    "chosen": "edges that were chosen, before those on no path were dropped",
    "path_at": "how many of the best edges it takes until a path leads from the input to the logits",
    "decisions": "edges that were tested; the others were removed untested: nothing used their receiver, or a shortlist"
    " ruled them out",
    "near_ties": "tests so close to the threshold that they were settled in float64",
    "compared": "the share of tests made again in float64: near-ties, and others to see how far rounding reaches",
    "largest_rounding": "the largest rounding error seen, as a share of what counts as close to the threshold then",
    "made_again": "tests made again because rounding was found to reach further than was thought",
    "tested": "decisions that were evaluated, at all thresholds",
    "shared": "decisions that were taken over from the threshold before",
    "ruled_out": "edges that the shortlist rules out",
    "plain_edges": "edges that ACDC keeps without a shortlist",
    "plain_differs": "edges that only one of the two keeps",
    "verified": "tests that the full engine made again, with the same result",
    "on_path": "kept edges on a path from the input to the logits",
    "seconds": "time the search took",
    "peak_mb": "largest memory use, in megabytes",
}
