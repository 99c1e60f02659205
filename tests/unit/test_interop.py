"""Acceptance as vLLM and SGLang tell it: metrics, logs, answers to requests."""

import json

import pytest

from specdec.experiments.interop import import_results
from specdec.experiments.interop_figures import NAMES, estimate, figures

VLLM_METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="org/m"} 30.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="org/m"} 1.0e+01
vllm:spec_decode_num_drafts_created{engine="0",model_name="org/m"} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="org/m"} 80.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="org/m"} 50.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="org/m",position="0"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="org/m",position="1"} 20.0 1700000000
vllm:generation_tokens_total{engine="0",model_name="org/m"} 95.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="org/m"} 3.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="org/m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",model_name="org/m",le="+Inf"} 4.0
vllm:spec_decode_num_drafts_total{engine="0",model_name="other"} 0.0
vllm:num_requests_running{engine="0",model_nam
"""
SGLANG_METRICS = """sglang:spec_accept_length{dp_rank="0",model_name="glm"} 3.0
sglang:spec_accept_length{dp_rank="1",model_name="glm"} 2.0
sglang:spec_accept_length{dp_rank="2",model_name="glm"} 0.0
sglang:spec_accept_rate{dp_rank="0",model_name="glm"} 0.5
sglang:e2e_request_latency_seconds_sum{model_name="glm"} 8.0
sglang:e2e_request_latency_seconds_count{model_name="glm"} 2.0
"""
VLLM_LOG = """INFO 08-04 21:01:48 [loggers.py:310] Engine 000: Avg prompt throughput: 0.0 tokens/s
INFO 08-04 21:01:58 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: 2.50, Accepted throughput: 0.60 \
tokens/s, Drafted throughput: 1.20 tokens/s, Accepted: 6 tokens, Drafted: 12 tokens, Per-position acceptance rate: \
0.750, 0.500, 0.250, Avg Draft acceptance rate: 50.0%
INFO 08-04 21:02:08 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: 1.50, Accepted throughput: 0.20 \
tokens/s, Drafted throughput: 1.10 tokens/s, Accepted: 2 tokens, Drafted: 11 tokens, Per-position acceptance rate: \
0.250, 0.250, 0.000, Avg Draft acceptance rate: 18.2%
INFO 08-04 21:02:18 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: nan, Accepted throughput: 0.00
"""
SGLANG_LOG = """[2026-08-04 21:01:58] Decode batch. #running-req: 3, #token: 900, token usage: 0.01, accept len: 2.00, \
accept rate: 0.25, cuda graph: True, gen throughput (token/s): 101.10, #queue-req: 0
[2026-08-04 21:02:08] Prefill batch. #new-seq: 1, #new-token: 12
[2026-08-04 21:02:18] Decode batch. #running-req: 1, #token: 900, token usage: 0.01, accept len: 4.00, \
accept rate: 0.75, cuda graph: True, gen throughput (token/s): 99.50, #queue-req: 0
"""
SUMMARY = {
    "mean_acceptance_length": 1.75, "draft_acceptance_rate": 0.25, "acceptance_histogram": [2, 1, 1, 0],
    "num_spec_steps": 4, "num_accepted_draft_tokens": 3, "num_draft_tokens": 11, "num_spec_tokens": 3,
}  # fmt: skip
DETAILED = {**SUMMARY, "per_step_accepted": [0, 2, 0, 1], "per_step_drafted": [3, 3, 2, 3]}


def imported(folder, *texts):
    paths = [folder / f"file{index}.txt" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return import_results(paths)


def values(listed):
    return [round(one["value"], 6) for one in listed]


def test_metrics_of_vllm(tmp_path):
    result = imported(tmp_path, VLLM_METRICS)
    (arm,) = result["arms"]  # the other model drafted nothing
    found = arm["overall"]
    assert (arm["label"], arm["system"], arm["num_speculative_tokens"]) == ("org/m", "vllm", 2)
    assert found["mean_acceptance_length"] == {"value": 1 + 50 / 40, "macro": None, "low": None, "high": None}
    assert found["draft_acceptance_rate"]["value"] == 50 / 80 and values(found["acceptance_at_pos"]) == [0.75, 0.5]
    assert (found["num_tokens"], found["num_drafted"], found["num_accepted"]) == (95, 80, 50)
    assert found["ttft_seconds"] == {"mean": {**found["ttft_seconds"]["mean"], "value": 0.75}, "p50": None, "p90": None,
                                     "p99": None}  # fmt: skip
    assert found["tokens_per_step"] is None and found["tpot_seconds"] is None and list(found) == NAMES
    assert result["warnings"] == ["file0.txt: 1 lines skipped, no samples"]
    assert (result["kind"], result["version"], result["environment"]) == ("imported", 1, None)


def test_metrics_of_sglang(tmp_path):
    result = imported(tmp_path, SGLANG_METRICS)
    found = result["arms"][0]["overall"]
    assert found["mean_acceptance_length"]["value"] == 2.5 and found["node_acceptance_rate"]["value"] == 0.5
    assert found["draft_acceptance_rate"] is None and found["e2e_seconds"]["mean"]["value"] == 4.0
    assert "of its last interval only" in result["warnings"][0]


def test_log_of_vllm(tmp_path):
    """The second line is of 4 drafts, one of them shorter: 11 is no multiple of 3."""
    result = imported(tmp_path, VLLM_LOG)
    (arm,) = result["arms"]
    found = arm["overall"]
    assert (arm["label"], arm["num_speculative_tokens"]) == ("file0", 3)
    assert (found["num_drafted"], found["num_accepted"]) == (23, 8)
    assert found["mean_acceptance_length"]["value"] == 2.0 and found["draft_acceptance_rate"]["value"] == 8 / 23
    assert values(found["acceptance_at_pos"]) == [0.5, 0.375, 0.125]
    assert result["warnings"] == ["file0.txt: 1 of 3 lines on speculation skipped, no counts"]


def test_log_of_sglang(tmp_path):
    result = imported(tmp_path, SGLANG_LOG)
    found = result["arms"][0]["overall"]
    assert found["mean_acceptance_length"]["value"] == (3 * 2.0 + 4.0) / 4
    assert found["node_acceptance_rate"]["value"] == (3 * 0.25 + 0.75) / 4
    assert "means over 2 lines" in result["warnings"][0]


def test_requests_of_vllm(tmp_path):
    answers = [{"model": "org/m", "metrics": {"speculative_decoding": block}} for block in (SUMMARY, DETAILED, SUMMARY)]
    lines = [f"data: {json.dumps(answer)}" for answer in answers]
    broken = json.dumps({"metrics": {"speculative_decoding": {**SUMMARY, "num_spec_steps": 5}}})
    result = imported(tmp_path, "\n\n".join([*lines, "data: {", broken, "data: [DONE]", ""]))
    (arm,) = result["arms"]
    found = arm["overall"]
    assert (arm["label"], found["num_requests"], found["num_drafted"], found["num_accepted"]) == ("org/m", 3, 33, 9)
    assert found["mean_acceptance_length"] == {"value": 1.75, "macro": 1.75, "low": 1.75, "high": 1.75}
    assert values(found["acceptance_at_pos"]) == [0.5, 0.25, 0.0]
    assert found["accepted_histogram"] == {"0": 6, "1": 3, "2": 3}
    assert found["survival_at_pos"] is None  # the depth of a draft is known of one request only
    assert result["warnings"] == ["file0.txt: 2 lines or requests skipped, no counts as they should be"]


def test_requests_with_every_step(tmp_path):
    sparse = {**DETAILED, "acceptance_histogram": {"0": 2, "1": 1, "2": 1}}
    found = imported(tmp_path, json.dumps([DETAILED, {"deep": [sparse]}]))["arms"][0]["overall"]
    assert found["acceptance_histogram_by_draft_length"] == {"2": {"0": 2}, "3": {"0": 2, "1": 2, "2": 2}}
    assert values(found["survival_at_pos"]) == [0.5, 0.25, 0.0]
    assert values(found["conditional_acceptance_at_pos"]) == [0.5, 0.5, 0.0]


def test_requests_of_sglang(tmp_path):
    lines = [json.dumps({"meta_info": {"completion_tokens": 12, "spec_verify_ct": 4}}) for _ in range(2)]
    (arm,) = imported(tmp_path, "\n".join(lines))["arms"]
    assert (arm["system"], arm["overall"]["mean_acceptance_length"]["value"]) == ("sglang", 3.0)


def test_files_of_several_formats_are_one_result(tmp_path):
    result = imported(tmp_path, VLLM_LOG, SGLANG_LOG, VLLM_METRICS)
    assert [(arm["system"], arm["cell"]) for arm in result["arms"]] == [
        ("vllm", "imported from vllm"), ("sglang", "imported from sglang"), ("vllm", "imported from vllm"),
    ]  # fmt: skip
    assert len({arm["id"] for arm in result["arms"]}) == 3 and json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a file of a known format, got"),
        ("hello", "pass one of these: answers of Spec-Bench or EAGLE; "),
        ("vllm:spec_decode_num_drafts_total 0.0", "expected metrics of drafts, got none above zero"),
        ("sglang:spec_accept_length x", "expected metrics of drafts"),
        ("SpecDecoding metrics: Mean acceptance length: nan", "expected lines of vLLM on drafts, got none with counts"),
        ("accept len: none", "expected lines of SGLang with an accept len, got none"),
        ('{"num_spec_steps": 3}', "expected counts of requests, got none"),
        ('{"choices": 1, "new_tokens": 2, "wall_time": 3}', "expected answers of Spec-Bench, got none"),
    ],
)
def test_foreign_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        imported(tmp_path, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "block",
    [
        {**SUMMARY, "num_spec_tokens": 10**12},
        {**SUMMARY, "num_draft_tokens": 10**400},
        {"num_spec_steps": 1, "x": None},
    ],
)
def test_numbers_that_are_no_counts_are_skipped_at_once(tmp_path, block):
    """No list as long as a damaged number, no float of what fits none."""
    deep = '{"num_spec_steps": ' + 100_000 * "["
    result = imported(tmp_path, "\n".join([json.dumps(SUMMARY), json.dumps(block), deep]))
    assert result["arms"][0]["overall"]["num_requests"] == 1
    assert result["warnings"] == ["file0.txt: 2 lines or requests skipped, no counts as they should be"]


def test_samples_and_lines_that_are_damaged_are_left_out(tmp_path):
    place = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="org/m",position="{}"}} 3.0'
    damaged = [place.format(10**12), 'vllm:generation_tokens_total{model_name="org/m"} +Inf']
    whole, torn = (
        imported(tmp_path, text)["arms"][0]["overall"] for text in (VLLM_METRICS, VLLM_METRICS + "\n".join(damaged))
    )
    assert torn == whole
    lines = [VLLM_LOG.replace("12 tokens", f"{10**400} tokens"), VLLM_LOG.replace("0.750, 0.500", "0.7.50, 0.500")]
    for text in lines:
        assert "2 of 3 lines on speculation skipped" in imported(tmp_path, text)["warnings"][0]


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a file to import"):
        import_results([tmp_path / "nowhere"])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00accept len: 2.0")
    assert import_results([tmp_path / "bytes"])["arms"][0]["overall"]["mean_acceptance_length"]["value"] == 2.0


def test_figures_have_the_names_of_a_summary():
    with pytest.raises(KeyError, match="speed"):
        figures(speed=1)
    assert estimate([]) is None and estimate([(1, 0)]) is None
    assert estimate([(3, 2), (1, 0)]) == {"value": 1.5, "macro": 1.5, "low": None, "high": None}
