import pytest
import torch

from hetconv_cli.convert.candidates import find_candidates
from hetconv_cli.convert.pairs import with_pairs
from hetconv_cli.convert.rewrite import apply_plan
from hetconv_cli.models.build import build
from hetconv_cli.models.source import resolve
from hetconv_cli.paper.recipes import RECIPES
from hetconv_cli.plan import Rules, make_plan

ROWS = [(table, row) for table in ("table1", "table3", "table4") for row in RECIPES[table]]


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_each_rebuilt_network_runs_forward_and_backward_on_cifar_s_shape(table, row):
    recipe, images = RECIPES[table][row], torch.randn(2, 3, 32, 32)
    model = build(resolve(recipe.model)).model
    if recipe.wish:
        candidates = find_candidates(model)
        if recipe.pairs:
            candidates = with_pairs(candidates, model, (images[:1],))
        model = apply_plan(model, make_plan(candidates, Rules(recipe.wish)), "fresh")
    output = model.train()(images)
    output.square().mean().backward()
    assert output.shape == (2, 10)
    assert output.isfinite().all()
    assert all(parameter.grad is not None for parameter in model.parameters())
