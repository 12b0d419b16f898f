"""Rules and plans as text: `plan.yaml`, which users write, and the plan inside a converted file.

Whatever comes in may come from anywhere, so every value is checked before it is used. No torch.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import PADDING_MODES, Geometry
from hetconv_cli.plan import SE_REDUCTION, VARIANTS, Change, LayerPlan, Part, Plan, Rule, Rules, Wish, impossible
from hetconv_cli.strict_yaml import read_mapping, write

Check = Callable[[object], Any]
LARGEST_PART = 999_999_999


def parse_part(text: str) -> Part:
    """A part from the command line: a positive integer in plain digits, or 'pc'.

    Raises:
        ArgumentError: anything else.
    """
    word = text.strip().lower()
    if word == "pc":
        return "pc"
    if not re.fullmatch(r"[1-9][0-9]{0,8}", word, re.ASCII):
        raise ArgumentError(f"p must be a positive integer or 'pc', got {shown(text)}")
    return int(word)


# --- plan.yaml ----------------------------------------------------------------------------------------------------


def rules_from_yaml(text: str, where: str, base: Wish) -> Rules:
    """The rules of a plan.yaml; what its default leaves open is taken from `base` (the command line's options).

    Raises:
        ArgumentError: not such a file; names the file and what is wrong in it.
    """
    data = read_mapping(text, where)
    unknown = set(data) - {"hetconv", "default", "layers"}
    if unknown:
        raise ArgumentError(f"{where}: unknown key {min(unknown)!r}; expected hetconv, default, layers")
    if type(data.get("hetconv")) is not int or data["hetconv"] != 1:
        raise ArgumentError(f"{where}: expected 'hetconv: 1' (the format's version), got {shown(data.get('hetconv'))}")
    default = _rule(data.get("default", {}), base, f"{where}: default")
    layers = {} if data.get("layers") is None else data["layers"]
    if not isinstance(layers, dict) or not all(isinstance(name, str) for name in layers):
        raise ArgumentError(f"{where}: layers: expected a mapping from names to rules, got {shown(layers)}")
    inherited = default if isinstance(default, Wish) else base
    rules = {name: _rule(value, inherited, f"{where}: layers: {shown(name)[1:-1]}") for name, value in layers.items()}
    return Rules(
        default,
        {name: rule for name, rule in rules.items() if not name.startswith("re:")},
        tuple((_pattern(name[3:], where), rule) for name, rule in rules.items() if name.startswith("re:")),
    )


def _pattern(text: str, where: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentError(f"{where}: {shown('re:' + text)} is no regular expression: {error}") from None
    return text


def _rule(value: object, base: Wish, where: str) -> Rule:
    if value == "keep":
        return "keep"
    if not isinstance(value, dict):
        raise ArgumentError(f"{where}: expected 'keep' or a mapping such as {{p: 4}}, got {shown(value)}")
    return replace(base, **_checked(value, _WISH, where))


def rules_to_yaml(rules: Rules, comment: str = "") -> str:
    """A plan.yaml that `rules_from_yaml` reads as the same rules; `comment` goes before it, a line each."""
    layers = {**rules.exact, **{f"re:{pattern}": rule for pattern, rule in rules.patterns}}
    data = {
        "hetconv": 1,
        "default": _rule_to_data(rules.default),
        "layers": {name: _rule_to_data(rule) for name, rule in layers.items()},
    }
    return "".join(f"# {line}\n" for line in comment.splitlines()) + write(data)


def _rule_to_data(rule: Rule) -> object:
    if rule == "keep":
        return rule
    data = {"variant": rule.variant, **_without_empty(asdict(rule)), "se": rule.se or False}
    return {key: value for key, value in data.items() if key != "groups" or rule.variant == "gwc"}


# --- the plan of a converted file ---------------------------------------------------------------------------------


def plan_to_data(plan: Plan) -> list[dict[str, Any]]:
    """Plain lists, maps and scalars, for YAML or JSON; fields that are empty are left out."""
    return [_without_empty(asdict(layer)) for layer in plan.layers]


def plan_from_data(data: object, where: str) -> Plan:
    """The plan that `plan_to_data` wrote.

    Raises:
        ArgumentError: anything that it does not write; `where` names the file.
    """
    if not isinstance(data, list):
        raise ArgumentError(f"{where}: plan: expected a list of layers, got {type(data).__name__}")
    return Plan(tuple(_layer(entry, f"{where}: plan, layer {index}") for index, entry in enumerate(data)))


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    """Without None and empty tuples; tuples as lists, which YAML and JSON know."""
    plain: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            plain[key] = _without_empty(value)
        elif value is not None and value != ():
            plain[key] = list(value) if isinstance(value, tuple) else value
    return plain


def _layer(entry: object, where: str) -> LayerPlan:
    facts = _checked(entry, _LAYER, where, required=("name", "geometry"))
    required = ("in_channels", "out_channels", "kernel")
    geometry = Geometry(**_checked(facts.pop("geometry"), _GEOMETRY, where, required))
    change = facts.pop("change", None)
    if change is not None:
        change = Change(**_checked(change, _CHANGE, where, required=("variant",)))
        if problem := impossible(change, geometry):
            raise ArgumentError(f"{where}: a change to {change} is not possible: {problem}")
    return LayerPlan(geometry=geometry, change=change, **facts)


# --- checks -------------------------------------------------------------------------------------------------------


def _checked(data: object, checks: dict[str, Check], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping `data` with each value as its check returns it; no unknown key, none of `required` missing."""
    if not isinstance(data, dict):
        raise ArgumentError(f"{where}: expected a mapping, got {shown(data)}")
    for key in data:
        if key not in checks:
            raise ArgumentError(f"{where}: unknown key {shown(key)}; expected {', '.join(checks)}")
    for key in required:
        if key not in data:
            raise ArgumentError(f"{where}: {key} is missing")
    result = {}
    for key, value in data.items():
        try:
            result[key] = checks[key](value)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {key}: {error}") from None
    return result


def _one_of(*known: str) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ArgumentError(f"expected one of {', '.join(known)}; got {shown(value)}")
        return value

    return check


def _integer(least: int) -> Check:
    def check(value: object) -> int:
        if type(value) is not int or value < least:
            raise ArgumentError(f"expected an integer >= {least}, got {shown(value)}")
        return value

    return check


def _pair(least: int) -> Check:
    def check(value: object) -> tuple[int, int]:
        if not isinstance(value, list) or len(value) != 2:
            raise ArgumentError(f"expected two integers, got {shown(value)}")
        number = _integer(least)
        return number(value[0]), number(value[1])

    return check


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"expected text, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value from a file as one line of at most 60 characters."""
    try:
        return repr(value)[:60]
    except ValueError:  # Python does not write out integers of thousands of digits
        return "an integer of thousands of digits"


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ArgumentError(f"expected a list of names, got {shown(value)}")
    return tuple(_text(entry) for entry in value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"expected true or false, got {shown(value)}")
    return value


def _as_is(value: object) -> object:
    return value


def _part(value: object) -> Part:
    if isinstance(value, str):
        return parse_part(value)
    if type(value) is not int or not 1 <= value <= LARGEST_PART:
        raise ArgumentError(f"p must be a positive integer or 'pc', got {shown(value)}")
    return value


def _se(value: object) -> int | None:
    if value is None or isinstance(value, bool):
        return SE_REDUCTION if value else None
    if type(value) is not int or value < 1:
        raise ArgumentError(f"expected true, false or a reduction such as 16, got {shown(value)}")
    return value


_POSITIVE = _integer(1)
_VARIANT = _one_of(*VARIANTS)
_ARRANGEMENT = _one_of(*ARRANGEMENTS)
_WISH: dict[str, Check] = {
    "variant": _VARIANT,
    "p": _part,
    "groups": _POSITIVE,
    "arrangement": _ARRANGEMENT,
    "se": _se,
}
_CHANGE: dict[str, Check] = {
    "variant": _VARIANT,
    "p": _POSITIVE,
    "groups": _POSITIVE,
    "arrangement": _ARRANGEMENT,
    "se": _POSITIVE,
}
_GEOMETRY: dict[str, Check] = {
    "in_channels": _POSITIVE,
    "out_channels": _POSITIVE,
    "kernel": _pair(1),
    "stride": _pair(1),
    "padding": _pair(0),
    "dilation": _pair(1),
    "groups": _POSITIVE,
    "bias": _flag,
    "padding_mode": _one_of(*PADDING_MODES),
}
_LAYER: dict[str, Check] = {
    "name": _text,
    "geometry": _as_is,
    "change": _as_is,
    "reason": _text,
    "aliases": _texts,
    "remark": _text,
    "absorbs": _texts,
}
