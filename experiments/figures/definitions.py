"""One sentence for each figure: printed in reports, kept in every summary. `acceptance rate` has five meanings."""

from .texts import MAX_FLAGGED, MAX_REPETITION, MIN_TOKENS, NGRAM

DEFINITIONS = {
    "estimate": "value: ratio of sums over all prompts (micro); macro: mean of the prompts' own ratios; low and "
    "high: 95 % interval, percentile cluster bootstrap over prompts with 10 000 resamples, null below 3 prompts; "
    "times are resampled by the groups of prompts that ran together",
    "step": "one call of the target for one request, with the tokens it emitted after the cut at the end of the text",
    "num_tokens": "new tokens, an end-of-text token included, nothing behind it",
    "num_steps": "steps, the one over the prompt included",
    "num_steps_without_draft": "steps in which nothing was drafted, the one over the prompt included",
    "num_drafted": "sum of the depths of the drafts",
    "num_accepted": "drafted tokens that were emitted",
    "num_nodes": "drafted tokens, all branches of a tree included",
    "num_wasted": "tokens accepted or drawn behind the one that ended the text",
    "tokens_per_step": "new tokens / steps, correction or bonus and the step over the prompt included; 1 without "
    "speculation (block efficiency)",
    "mean_acceptance_length": "1 + accepted / steps with a draft (as vLLM counts it: the bonus included, steps "
    "without a draft left out)",
    "accepted_per_step": "accepted / steps: without the bonus",
    "draft_acceptance_rate": "accepted / drafted depth (vLLM's name; on a chain the share of drafted tokens)",
    "node_acceptance_rate": "accepted / drafted nodes: below draft_acceptance_rate for trees",
    "target_calls_per_token": "steps / new tokens, the inverse of tokens_per_step",
    "waste": "share of the rows scored (drafted nodes, and one more for each step) from which no token was emitted; "
    "rows of the prompt are left out",
    "acceptance_at_pos": "for each position: steps that accepted at least so many / steps with a draft (vLLM's, "
    "unconditional: a shorter draft counts as refused)",
    "survival_at_pos": "for each position: steps that accepted at least so many / steps that drafted so deep",
    "conditional_acceptance_at_pos": "for each position: steps that accepted at least so many / steps that drafted "
    "so deep and accepted all before it",
    "accepted_histogram": "accepted tokens -> number of steps with a draft",
    "acceptance_histogram_by_draft_length": "depth of the draft -> accepted tokens -> number of steps",
    "acceptance_by_depth_and_rank": "for each depth and rank among siblings: how often such a child of the emitted "
    "path was offered, and emitted",
    "by_source": "steps with a draft, drafted depth and accepted tokens by who drafted",
    "ttft_seconds": "time from the call to the first token of a request, the drafter's work on the prompt included",
    "tpot_seconds": "(time of the last token - of the first) / (tokens - 1) of a request; the mean is a ratio of sums",
    "itl_seconds": "gaps between emission events of a request; an event may bring several tokens",
    "itl_per_token_seconds": "gap before an emission event / tokens of the event, one value per event",
    "e2e_seconds": "time from the call to the last token of a request; without events, to the end of the call",
    "tokens_per_second": "new tokens / wall time of the calls, prompts included; of the median run of each group",
    "seconds": "wall time by part, of the median runs: draft, score (target forward), rule (processors, draws, "
    "verification), cache, host (rest of the rounds), outside (the calls around the rounds); they sum to total",
    "speedup": "tokens_per_second / that of the baseline's run of the same group, repeat and process; of several "
    "repeats the median pair; paired interval; macro: mean over groups",
    "speedup_tpot": "time per token after the first: the baseline's / this arm's, of the same pairs",
    "memory": "largest number of bytes held for keys and values of the target, of the drafter, and on the device in "
    "all",
    "text": "texts held against the baseline's of the same group, repeat and process: the first difference of each, "
    "with its margin, by how much a logit would have to rise there for the other token to be chosen; is_tie: rounding "
    "may have decided",
    "repetition": f"share of new tokens inside a {NGRAM}-gram that stood earlier in the same text",
    "eos_rate": "share of the texts that ended by an end-of-text token",
    "degeneracy": f"a text is flagged if more than {MAX_REPETITION:.0%} of it is repetition (from {MIN_TOKENS} tokens "
    f"on) or if it ended at once, an arm if more than {MAX_FLAGGED:.0%} of its texts are: its speed says little about "
    "others",
    "cells": "arms of equal target, dtype, sampling and batch size, fastest first; `over` is the tokens per second "
    "of the fastest / those of this arm, paired, p_value by exchange of labels, Holm-corrected over the arms of the "
    "cell",
}
