"""Every row that is drafted by, against one computed from scratch."""

import torch

TOLERANCE = 1e-10  # float64: only the order of sums differs (measured: below 1e-13)


def compare_rows(monkeypatch, runner, expected):
    """From now on, what `score` and `step` of this class give is compared; returns how many rows each call gave.

    Args:
        runner: `PagedModel`, or what stands in for it.
        expected: (runner, tokens, number of committed tokens) -> logits [vocab] after the last token.
    """
    original, original_step, lines, count = runner.score, runner.step, {}, []

    def compare(rows, wanted):
        if wanted:
            torch.testing.assert_close(rows, torch.stack(wanted), rtol=0, atol=TOLERANCE)
        count.append(len(wanted))

    def score(model, cache, chunks):
        scores = original(model, cache, chunks)
        wanted = []
        for chunk in chunks:
            table, tree = chunk.table, chunk.tree
            known = [*table.tokens, *lines.get(id(table), [])[: chunk.start - table.length]]
            prefix = known[: chunk.start]
            assert len(prefix) == chunk.start
            for node in range(len(tree) - chunk.num_logits, len(tree)):
                path = [tree.tokens[0], *tree.tokens_at(tree.path_to(node))]
                wanted.append(expected(model, [*prefix, *path], table.length + 1))
            lines[id(table)] = [*prefix, *tree.tokens][table.length :]
        compare(scores.logits, wanted)
        return scores

    def step(model, cache, tables, rows, tokens):
        logits, wanted = original_step(model, cache, tables, rows, tokens), []
        for table, row, token in zip(tables, rows, tokens, strict=True):
            line = lines[id(table)] = [*lines[id(table)][: row - table.length], token]
            text = [*table.tokens, *line]
            assert len(text) == row + 1
            wanted.append(expected(model, text, table.length + 1))
        compare(logits, wanted)
        return logits

    monkeypatch.setattr(runner, "chain", lambda *_: None)  # a chain at once gives no rows
    monkeypatch.setattr(runner, "score", score)
    monkeypatch.setattr(runner, "step", step)
    return count
