"""The replay drafter: right until told otherwise, wrong at the rate it was asked for."""

import math
from types import SimpleNamespace

import pytest

from specdec.draft_models.replay import Replay

PROMPT = [3, 1]


def view(said, request_id=0):
    return SimpleNamespace(request_id=request_id, tokens=PROMPT + said, prompt_length=len(PROMPT))


def drafted(drafter, said, budget=99, request_id=0):
    (draft,) = drafter.propose([view(said, request_id)], [budget], [])
    assert draft.tree.is_chain and not any(draft.sampled)
    assert draft.tree.tokens[0] == (PROMPT + said)[-1]
    return draft.tree.tokens[1:]


def decode(drafter, record):
    """Greedy decoding of a target that says `record`: (tokens tested, tokens accepted)."""
    said, tested, accepted = record[:1], 0, 0
    while len(said) < len(record):
        for token in drafted(drafter, said):
            tested += 1
            if token != record[len(said)]:
                break
            accepted += 1
            said = [*said, token]
        said = [*said, *record[len(said) : len(said) + 1]]
    return tested, accepted


def test_record_is_replayed_up_to_budget_length_and_end():
    drafter = Replay([[5, 6, 7, 8, 9]], 1.0, num_speculative_tokens=3)
    assert drafted(drafter, [5]) == [6, 7, 8]
    assert drafted(drafter, [5], budget=1) == [6]
    assert drafted(drafter, [5], budget=0) == []
    assert drafted(drafter, []) == [5, 6, 7]
    assert drafted(drafter, [5, 6, 7]) == [8, 9]
    assert drafted(drafter, [5, 6, 7, 8, 9]) == []
    assert drafted(drafter, [5, 6, 7, 8, 9, 4]) == []


def test_text_that_left_the_record_gets_no_draft():
    assert drafted(Replay([[5, 6, 7]], 1.0), [4]) == []
    assert drafted(Replay([[5, 6, 7]], 1.0), [5, 9]) == []


def test_the_prompt_is_no_part_of_a_record():
    assert drafted(Replay([[*PROMPT, 5, 6, 7]], 1.0), [5]) == []
    assert drafted(Replay([[*PROMPT, 5, 6, 7]], 1.0), PROMPT) == [5, 6, 7]  # a text that repeats its prompt


def test_records_go_by_request():
    by_id = Replay({4: (8, 9)}, 1.0)
    assert drafted(by_id, [8], request_id=4) == [9]
    assert drafted(by_id, [8], request_id=0) == []
    assert drafted(Replay([[1], [2, 3]], 1.0), [2], request_id=1) == [3]


def test_acceptance_zero_is_always_wrong_and_valid():
    record = [0, 1, 0, 1, 1, 0]
    for place in range(len(record)):
        wrong = drafted(Replay([record], 0.0, 9), record[:place])
        assert all(token != right and token in (0, 1) for token, right in zip(wrong, record[place:], strict=True))


def test_errors_depend_on_seed_request_and_place_only():
    record = list(range(2, 202))
    errors = {}
    for seed in (0, 1):
        for request_id in (0, 1):
            drafter = Replay([record, record], 0.5, 200, seed)
            tokens = drafted(drafter, [], 999, request_id)
            assert drafted(drafter, record[:50], 999, request_id) == tokens[50:]
            errors[seed, request_id] = tuple(a != b for a, b in zip(tokens, record, strict=True))
    assert len(set(errors.values())) == 4


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.9])
def test_acceptance_rate_is_what_was_asked_for(acceptance):
    """Tested places are independent, so by Hoeffding the rate of N tests is within sqrt(ln(2e6) / 2N) of
    `acceptance`, except with probability 1e-6 over the seeds (the seed is fixed: it cannot flicker)."""
    record = [place % 7 for place in range(20_000)]
    said, tested, accepted = 0, 0, 0
    drafter = Replay([record], acceptance, num_speculative_tokens=20_000)
    right = [a == b for a, b in zip(drafted(drafter, [], budget=20_000), record, strict=True)]
    while said < len(record):  # a round: the run of right tokens, then the target's own token
        run = right[said : said + 5]
        num_accepted = run.index(False) if False in run else len(run)
        tested += min(num_accepted + 1, len(run))
        accepted += num_accepted
        said += num_accepted + 1
    assert abs(accepted / tested - acceptance) <= math.sqrt(math.log(2e6) / (2 * tested))


def test_decoding_with_it_accepts_what_is_right():
    record = [place % 5 for place in range(60)]
    tested, accepted = decode(Replay([record], 0.7), record)
    assert 0 < accepted < tested
    assert decode(Replay([record], 0.0), record)[1] == 0
    tested, accepted = decode(Replay([record], 1.0), record)
    assert tested == accepted


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"expected acceptance .* got 1.5;"):
        Replay([[1]], 1.5)
    with pytest.raises(ValueError, match=r"expected num_speculative_tokens .* got 0;"):
        Replay([[1]], 0.5, 0)
