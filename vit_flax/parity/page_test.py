import dataclasses
import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vit_flax.parity.compare import Row
from vit_flax.parity.page import format_page
from vit_flax.parity.page_errors import lines_by_kind, lines_in_order
from vit_flax.parity.page_images import highlighted, png
from vit_flax.parity.page_numbers import scientific, shape_text
from vit_flax.parity.report import Check, Report

NAMES = (
    "patch_tokens.project",
    "backbone.blocks.0:input",
    "backbone.blocks.0.attn.qkv",
    "backbone.blocks.0",
    "backbone.blocks.1.attn.qkv",
    "backbone.blocks.1",
    "backbone.<head> & 'tail'",
)
VOID = {"meta", "link", "wbr", "br", "img", "hr", "input"}


def row(name: str, relative: float = 3e-16, agrees: bool = True, **changes) -> Row:
    return dataclasses.replace(Row(name, f"flax/{name}", (2, 17, 48), 1e-15, relative, 1e-7, 2e-7, agrees), **changes)


def figures() -> dict:
    rng = np.random.default_rng(0)
    return {
        "patches": {
            "image": rng.random((6, 10)).tolist(),
            "patch_size": 2,
            "token": 6,
            "token_values": rng.random(4).tolist(),
        },
        "position_table": rng.uniform(-1, 1, (5, 8)).tolist(),
        "attention": {
            "images": rng.random((3, 8, 8)).tolist(),
            "labels": [0, 1, 2],
            "weights": rng.random((3, 2, 4, 4)).tolist(),
        },
    }


def make_report(**changes) -> Report:
    rows = [row(name) for name in NAMES]
    report = Report(
        "A <small> model",
        {"image_size": [8, 8], "patch_size": [2, 2], "depth": 2, "embed_dim": 48, "num_heads": 2, "num_classes": 1},
        sections={
            "components": [row(NAMES[0], 0.0), *rows[1:]],
            "stressed": list(rows),
            "gradients": [row("image"), *rows],
            "steps": [row(name, torch_float32_error=None, flax_float32_error=None) for name in ("loss", *NAMES)],
        },
        torch_losses=[2.0, 1.5, 1.25],
        flax_losses=[2.0, 1.5, 1.25 + 2**-50],
        checks=[Check("9 of 9 digits get the same label in both frameworks (8 the right one)", True)],
        worked_example=[Check("cut into tokens: 1 x 15 x 400, relative difference 0.0e+00", True)],
        figures=figures(),
        versions={"torch": "2.0<cpu>"},
    )
    return dataclasses.replace(report, **changes)


class Balance(HTMLParser):
    """Checks that every tag is closed in order and every id given once."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name == "aria-labelledby":
                self.references += value.split()
            if name in ("href", "src", "srcset", "data", "action", "xlink:href"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open, f"{tag} was never opened"
        assert self.open.pop() == tag


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<(style|title)[^>]*>.*?</\1>", "", page, flags=re.S)))


VARIANTS = {
    "agrees": make_report(),
    "nothing compared": Report("empty", {}),
    "no steps, no figures": make_report(
        torch_losses=[],
        flax_losses=[],
        figures={},
        sections={"components": [row(name) for name in NAMES]},
    ),
    "not finite": make_report(
        sections={
            "components": [
                row(NAMES[0]),
                row(NAMES[1], math.nan, False, flax_float32_error=math.nan),
                row(NAMES[2], math.inf, False, torch_float32_error=None, flax_float32_error=None),
                row(NAMES[3], 1e300, False),
                row(NAMES[4], 1e-300),
            ]
        },
        torch_losses=[math.nan, math.inf, 1.0],
        flax_losses=[1.0, 1.0, -math.inf],
        figures={
            **figures(),
            "attention": {"images": np.zeros((1, 8, 8)), "labels": [3], "weights": np.full((1, 2, 4, 4), math.nan)},
        },
    ),
    "zero losses": make_report(torch_losses=[0.0], flax_losses=[0.0]),
    "mutated": make_report(mutation="gelu_tanh", sections={"gradients": [row("image", 0.5, False)]}),
    "unknown mutation": make_report(mutation="<b>"),
}


@pytest.mark.parametrize("report", VARIANTS.values(), ids=VARIANTS.keys())
def test_page_is_well_formed_and_needs_nothing_outside(report):
    page = format_page(report)
    parsed = parse(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert set(parsed.references) <= set(parsed.ids)
    for link in parsed.links:
        assert link.startswith("data:") or link[1:] in parsed.ids, link
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert not re.search(r'"(nan|-?inf)%?"|=(nan|inf)', page), "coordinates that are not numbers"


def test_page_has_every_row_escaped():
    report = make_report()
    page = format_page(report)
    for rows in report.sections.values():
        for r in rows:
            assert f"<code>{html.escape(r.name)}</code>" in page
    assert "<head>" in page
    assert page.count("<head>") == 1
    assert "A &lt;small&gt; model" in page
    assert "2.0&lt;cpu&gt;" in page


def test_page_has_every_figure():
    page = format_page(make_report())
    for ident in ("patches", "positions", "components", "stressed", "gradients", "losses", "steps", "attention-2"):
        assert f'id="{ident}-title"' in page, ident
    assert page.count("<figcaption>") == page.count("<figure>") == 8
    for number in range(15):
        assert f">{number}</text>" in page
    text = text_of(page)
    assert scientific(2**-50) in text  # the largest difference of the losses
    assert "1 × 15 × 400" in text


def test_page_without_figures_or_steps_leaves_them_out():
    page = format_page(VARIANTS["no steps, no figures"])
    assert page.count("<figure>") == 1
    for ident in ("tokens", "positions", "attention", "training", "steps", "gradients"):
        assert f'id="{ident}"' not in page


def test_agreeing_report_says_so():
    text = text_of(format_page(make_report()))
    assert "The two models are the same." in text
    assert "differ" not in text.split("What was compared")[0].replace("difference", "")
    assert "9 of 9 digits labelled equal" in text
    assert "3 AdamW steps with equal losses and parameters" in text


@pytest.mark.parametrize(
    ("section", "relative", "flax_error", "reason"),
    [
        ("components", 4.3e-4, 4e-4, f"{scientific(4.3e-4)} in float64, 10⁻⁹ allowed"),
        ("stressed", 1e-13, 5e-4, "5,000 times torch’s, 4 allowed"),
        ("gradients", math.nan, math.nan, "not numbers"),
        ("components", math.inf, None, "another shape"),
    ],
)
def test_first_divergence_is_named_and_marked(section, relative, flax_error, reason):
    report = make_report()
    name = NAMES[4]
    errors = {"flax_float32_error": flax_error, "torch_float32_error": None if flax_error is None else 1e-7}
    report.sections[section] = [
        row(r.name, relative, False, **errors) if r.name == name else r for r in report.sections[section]
    ]
    page = format_page(report)
    top, rest = text_of(page).split("What was compared")
    assert "The two models" in top
    assert name in top
    assert reason in top
    assert "first to differ" in rest
    assert reason in rest
    assert page.count(f'id="{section}-first"') == page.count(f'href="#{section}-first"') == 1
    assert ("What runs just before it, backbone.blocks.0," in top) == (section != "gradients")
    assert (f"look first at the last row that differs, {name}." in top) == (section == "gradients")


def test_disagreeing_statement_is_shown_at_the_top():
    report = make_report(checks=[Check("8 of 9 digits get the same label in both frameworks", False)])
    top = text_of(format_page(report)).split("What was compared")[0]
    assert "The two models differ." in top
    assert "8 of 9 digits get the same label" in top


def test_rows_zero_in_exact_arithmetic_are_no_headline():
    report = make_report()
    report.sections["gradients"].append(row("k.bias", 0.7, True))
    top = text_of(format_page(report)).split("What was compared")[0]
    assert scientific(3e-16) in top
    assert "0.7" not in top


def test_lines_group_blocks():
    rows = [row(name) for name in NAMES[:6]]
    assert [(line.group, line.label) for line in lines_in_order(rows)][1:4] == [
        ("backbone.blocks.0", "its input"),
        ("backbone.blocks.0", "attn.qkv"),
        ("backbone.blocks.0", "its output"),
    ]
    kinds = lines_by_kind(rows)
    assert [(line.group, line.label, len(line.rows)) for line in kinds] == [
        ("", "patch_tokens.project", 1),
        ("backbone.blocks.0 … 1", "its input", 1),
        ("backbone.blocks.0 … 1", "attn.qkv", 2),
        ("backbone.blocks.0 … 1", "its output", 2),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.44, "0.44"), (1.3e-11, "1.3×10⁻¹¹"), (math.inf, "infinite"), (12345.0, "1.2×10⁴")],
)
def test_scientific(value, text):
    assert re.sub(r"\s", "", scientific(value)) == text


def test_shape_of_a_number():
    assert re.sub(r"\s", " ", shape_text(())) == "one number"


def test_png_and_highlighter():
    assert png(np.zeros((2, 3))).startswith("data:image/png;base64,iVBORw0KGgo")
    colours = highlighted(np.zeros((4, 4)), [[1.0, 0.0], [0.0, 0.0]], factor=2)
    assert colours.shape == (8, 8, 3)
    assert colours[0, 0, 0] < colours[-1, -1, 0]  # greener where the weight is
    assert np.isfinite(highlighted(np.zeros((4, 4)), [[math.nan]])).all()
