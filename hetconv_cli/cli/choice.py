"""A budget on the command line: parts are chosen layer by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from hetconv_cli.measure.choice import Choice, Kind

Budget = Annotated[
    float | None,
    typer.Option("--budget", metavar="0.4", help="Choose P layer by layer: this part of the network's MACs at most."),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        "--latency-budget", metavar="0.5", help="The same for the time of the layers, each measured here with each P."
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option("--max-error", metavar="0.05", help="The same: fewest MACs with this sum of relative squared errors."),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="plan.yaml", help="Where a chosen plan is written. [default: beside the output]"),
]


@dataclass(frozen=True)
class Limit:
    """What the choice has to keep, and where the plan goes."""

    kind_and_value: "tuple[Kind, float]"
    plan: Path | None

    @staticmethod
    def of(
        budget: float | None,
        latency_budget: float | None,
        max_error: float | None,
        plan: Path | None,
        config: Path | None,
    ) -> "Optional[Limit]":  # noqa: UP045  # the class has no name yet
        """The limit that the options give, or None.

        Raises:
            ArgumentError: more than one, one out of range, or options that do not go together.
        """
        from hetconv_cli.errors import ArgumentError
        from hetconv_cli.measure.choice import the_limit

        if budget is None and latency_budget is None and max_error is None:
            if plan is not None:
                raise ArgumentError("--plan is written for --budget, --latency-budget or --max-error: give one of them")
            return None
        if config is not None:
            raise ArgumentError("--config and a budget both say what P is: leave one of them out")
        return Limit(the_limit(budget, latency_budget, max_error), plan)

    @property
    def suffix(self) -> str:
        """For the name of the converted file."""
        kind, value = self.kind_and_value
        return {"budget": "budget", "latency_budget": "latency", "max_error": "error"}[kind] + f"{value:g}"

    def plan_file(self, target: Path) -> Path:
        """Where the plan goes, when the network goes to `target`."""
        return self.plan or target.with_suffix(".plan.yaml")

    def write_plan(self, choice: "Choice", target: Path, model: str) -> None:
        """Writes the plan for --config."""
        from hetconv_cli.cli.output import talk
        from hetconv_cli.files import replacing
        from hetconv_cli.plan_file import rules_to_yaml

        kind, value = self.kind_and_value
        path = self.plan_file(target)
        comment = f"hetconv convert {model} --{kind.replace('_', '-')} {value:g}: the choice of least error"
        with replacing(path) as temporary:
            temporary.write_text(rules_to_yaml(choice.rules, comment), encoding="utf-8")
        talk(f"wrote {path}, for --config")
