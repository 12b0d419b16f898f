"""The report of a choice of parts."""

from dataclasses import asdict
from typing import Any

from hetconv_cli.measure.choice import Choice
from hetconv_cli.render.numbers import count
from hetconv_cli.render.table import Table


def choice_json(choice: Choice) -> dict[str, Any]:
    """The documented structure."""
    kind, value = choice.limit
    return {
        "limit": {kind: value},
        "unit": _unit(choice),
        "errors_from": choice.errors_from,
        "error": choice.error,
        "bound": choice.bound,
        "cost": choice.cost,
        "cost_before": choice.cost_before,
        "layers": [asdict(layer) for layer in choice.layers],
    }


def choice_table(choice: Choice) -> Table:
    """What was chosen for each layer."""
    rows = [
        [
            layer.name,
            str(layer.chosen.p or "kept"),
            _cost(choice, layer.options[0].cost),
            _cost(choice, layer.chosen.cost),
            f"{layer.chosen.error:.4f}",
        ]
        for layer in choice.layers
    ]
    rows.append(["", "", _cost(choice, choice.cost_before), _cost(choice, choice.cost), f"{choice.error:.4f}"])
    kind, value = choice.limit
    unit = _unit(choice)
    origin = "measured on images held out" if choice.errors_from == "images" else "energy of the weights that go"
    headline = f"{kind.replace('_', ' ')} {value:g}: P chosen layer by layer; errors: {origin}"
    last = f"  last row: {'the whole network' if unit == 'MAC' else 'these layers'}; {_proof(choice)}"
    return Table(["layer", "P", f"{unit} before", "after", "squared error / spread"], rows, [headline], [last])


def _proof(choice: Choice) -> str:
    if choice.limit[0] == "max_error":
        exact, of = choice.bound == choice.cost, f"no choice within it has fewer MACs than {count(int(choice.bound))}"
    else:
        exact, of = choice.bound == choice.error, f"no choice within it has less error than {choice.bound:.4f}"
    return f"{of} (dynamic programming, {'exact' if exact else 'costs rounded'})"


def _unit(choice: Choice) -> str:
    return "ns" if choice.limit[0] == "latency_budget" else "MAC"


def _cost(choice: Choice, cost: int) -> str:
    return f"{cost:,}" if _unit(choice) == "ns" else count(cost)
