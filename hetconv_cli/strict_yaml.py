"""Reads YAML that may come from anywhere: plain scalars, lists and maps, and nothing that expands or runs."""

from collections.abc import Hashable
from typing import Any

import yaml

from hetconv_cli.errors import ArgumentError

LARGEST = 4 * 1024 * 1024  # characters; a plan of ten thousand layers is a quarter of that


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys are not allowed", key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {key_node.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """The mapping that `text` holds; `where` names the file in messages.

    Raises:
        ArgumentError: too large, no YAML, not a mapping, or aliases, merge keys, tags or duplicate keys in it.
    """
    if len(text) > LARGEST:
        raise ArgumentError(f"{where}: expected at most {LARGEST} characters of YAML, got {len(text)}")
    try:
        data = yaml.load(text, _StrictLoader)  # a SafeLoader with fewer features
    except Exception as error:  # PyYAML's constructors raise whatever a strange scalar makes them meet
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError(f"{where}{line}: not readable as plain YAML: {problem}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ArgumentError(f"{where}: expected a mapping with names as keys, got {type(data).__name__}")
    return data


def write(data: dict[str, Any]) -> str:
    """`data` as YAML that `read_mapping` takes back, in its own order, without aliases."""
    return yaml.dump(
        data, Dumper=_PlainDumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=False
    )


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
