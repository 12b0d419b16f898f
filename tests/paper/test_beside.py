import ast
from pathlib import Path

import pytest

import hetconv_cli
from hetconv_cli.errors import ArgumentError
from hetconv_cli.paper import beside, printed, rebuilt
from hetconv_cli.paper.recipes import RECIPES, TORCHVISION_RESNET34

PACKAGE = Path(hetconv_cli.__file__).parent
QUOTED = {
    "table2": {"Li-pruned", "SBP", "SBPa", "AFP-E", "AFP-F"},
    "table3": {"Li-B", "NISP", "CP", "SFP", "AFP-G"},
    "table5": {"RNP (3X)", "ThiNet-70", "CP 2X"},
    "table6": {"Li-B", "NISP"},
}


def macs_tolerance(model):
    """In per cent of print, for table 1: what the issue asks for."""
    if model.endswith("_SE"):
        return 0.8
    return {"VGG-16_PC": 0.5, "VGG-16_DWC_PWC": 0.7}.get(model, 0.25)


def test_every_row_is_rebuilt_or_quoted():
    for name, table in printed.printed_tables().items():
        assert set(table.rows) - set(RECIPES[name]) == QUOTED.get(name, set())
        assert set(RECIPES[name]) - set(table.rows) == ({TORCHVISION_RESNET34} if name == "table6" else set())


def test_all_tables_lie_as_near_to_print_as_was_asked():
    tables = {table.name: {row.model: row for row in table.rows} for table in beside.reproduce()}
    assert [len(rows) for rows in tables.values()] == [18, 7, 11, 3, 5, 6]
    for rows in tables.values():
        for row in rows.values():
            if row.kind == "quoted":
                assert (row.ours, row.deviation_pct) == (None, {})
            else:
                assert row.ours.analytic == row.ours.dispatcher < row.ours.thop
    for model, row in tables["table1"].items():
        assert row.kind == "rebuilt"
        assert abs(row.deviation_pct["macs_m"]) < macs_tolerance(model)
        assert abs(row.deviation_pct["params_m"]) < (2 if "DWC" in model else 0.7)
    for name in ("table2", "table3"):
        assert all(abs(row.deviation_pct.get("macs_reduced_pct", 0)) < 0.05 for row in tables[name].values())
    for model, row in tables["table4"].items():
        assert abs(row.deviation_pct["macs_m"]) < (1 if model.endswith("_SE") else 0.1)
    assert round(tables["table5"]["VGG-16_P4"].ours.macs_reduced_pct, 1) == 65.8
    assert abs(tables["table6"]["ResNet-34_P4"].deviation_pct["macs_reduced_pct"]) < 0.05
    assert round(tables["table6"][TORCHVISION_RESNET34].ours.macs_reduced_pct, 2) == 64.16
    with_additions_is_the_printed_figure(tables["table1"])


def with_additions_is_the_printed_figure(rows):
    """Table 1 once the additions are added, by the conventions that docs/paper.md tells."""
    for model, row in rows.items():
        if "_PC" not in model:  # printed with P = N, which is another layer
            total = (row.ours.analytic + row.ours.additions) / 1e6
            assert total == pytest.approx(row.printed["macs_m"], abs=0.021 if model.endswith("_SE") else 0.0101)


def test_a_changed_printed_figure_changes_no_figure_of_ours(monkeypatch):
    (before,) = beside.reproduce(["table5"])
    table = printed.printed_tables()["table5"]
    forged = {model: dict.fromkeys(figures, 1.0) for model, figures in table.rows.items()}
    tables = printed.printed_tables() | {"table5": printed.PrintedTable("table5", table.title, forged)}
    monkeypatch.setattr(beside, "printed_tables", lambda: tables)
    (after,) = beside.reproduce(["table5"])
    assert [row.ours for row in after.rows] == [row.ours for row in before.rows]
    assert all(set(row.printed.values()) == {1.0} for row in after.rows)
    assert after.rows[-1].deviation_pct != before.rows[-1].deviation_pct


def test_our_figures_are_made_where_nothing_printed_can_be_read():
    for name in ("recipes", "rebuilt", "additions"):
        tree = ast.parse((PACKAGE / "paper" / f"{name}.py").read_text("utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"hetconv_cli.paper.printed", "hetconv_cli.paper.beside"}
        numbers = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not [number for number in numbers if isinstance(number, float)]
    readers = [file.name for file in PACKAGE.rglob("*.py") if "tables.yaml" in file.read_text("utf-8")]
    assert readers == ["printed.py"]


def test_no_printed_figure_stands_in_the_code():
    rows = [row for table in printed.printed_tables().values() for row in table.rows.values()]
    figures = {value for row in rows for value in row.values() if value is not None and value != round(value)}
    for file in (PACKAGE / "paper").glob("*.py"):
        constants = [
            node.value for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Constant)
        ]
        assert not [value for value in constants if isinstance(value, float) and value in figures]


def test_an_unknown_table_is_an_error():
    with pytest.raises(ArgumentError, match="unknown table 'table9': expected table1, table2"):
        beside.reproduce(["table9"])


def test_tables_come_in_the_paper_s_order_and_once(monkeypatch):
    monkeypatch.setattr(beside, "rebuild", lambda names, progress: {name: {} for name in names})
    assert [table.name for table in beside.reproduce(["table3", "TABLE1", "table3"])] == ["table1", "table3"]


@pytest.mark.parametrize(
    ("table", "what", "model", "accuracy"),
    [
        ("table1", "accuracy", "VGG-16_P4", 93.93),
        ("table2", "accuracy", "SBP", 92.5),
        ("table5", "top-5 accuracy", "CP 2X", 89.9),
        ("table6", "top-1 accuracy", "NISP", 72.31),
    ],
)
def test_accuracies_are_of_one_kind_within_a_table(table, what, model, accuracy):
    rows = printed.printed_tables()[table].rows
    named, values = printed.printed_accuracies(rows.values())
    assert named == what
    assert dict(zip(rows, values, strict=True))[model] == pytest.approx(accuracy)


def test_progress_names_every_network(monkeypatch):
    told = []
    monkeypatch.setattr(rebuilt._Workshop, "figures", lambda self, recipe, biases: None)
    rebuilt.rebuild(["table4"], lambda what, done, total: told.append((what, done, total)))
    assert told == [("table4 MobileNet", 0, 3), ("table4 MobileNet_P32", 1, 3), ("table4 MobileNet_P32_SE", 2, 3)]
