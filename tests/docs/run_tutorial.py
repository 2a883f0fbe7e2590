"""Runs the Python blocks of docs/tutorial.md as they stand, in order, in one namespace.

`python -m tests.docs.run_tutorial` runs them; its last line is JSON for the test. With `--pictures`
it also draws the pictures of the page again.
"""

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tutorial.md"

_BLOCK = re.compile(
    r"^/// tab \| (?P<tab>.*)$|^(?P<end>///)$|^```python.*\n(?P<code>(?s:.*?))^```$", re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Python code of the page.

    Attributes:
      code: as it stands, after as many empty lines as precede it, so that errors name its lines.
      tab: title of the tab that it is in, or "".
      end: position in the page after the block.
    """

    code: str
    tab: str
    end: int


def blocks(page: str) -> list[Block]:
    """Return the Python blocks of a page, in order."""
    found, tab = [], ""
    for match in _BLOCK.finditer(page):
        if match["code"] is None:
            tab = match["tab"] or ""
        else:
            padding = "\n" * page.count("\n", 0, match.start("code"))
            found.append(Block(padding + match["code"], tab, match.end()))
    return found


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run one block."""
    exec(compile(block.code, str(PAGE), "exec"), namespace)


def ordinary_program(page: str) -> dict[str, Any]:
    """Return the namespace of the page without the cyclical tabs, up to the training."""
    namespace: dict[str, Any] = {"__name__": "ordinary"}
    for block in blocks(page):
        if block.tab != "Cyclical rate":
            run(block, namespace)
        if "train_epoch" in namespace:
            break
    return namespace


def whole_page(page: str, pictures: bool) -> dict[str, Any]:
    """Return the namespace of the whole page, and save its figures if asked for."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        run(block, namespace)
        figure = namespace.pop("figure", None)
        if figure is not None and pictures:
            picture = re.search(r"!\[[^]]*\]\((.*?)\)", page[block.end :])
            assert picture, "a figure needs a picture below it"
            figure.savefig(PAGE.parent / picture[1], dpi=120)
    return namespace


def main() -> None:
    """Run the page both ways, and print what the test looks at."""
    page = PAGE.read_text(encoding="utf-8")
    ordinary = ordinary_program(page)
    model = ordinary["CNN"](ordinary["nnx"].Rngs(0))
    optimizer = ordinary["create_optimizer"](model)
    # A third of an epoch is enough to see the loss fall.
    mnist, few = ordinary["mnist"], 150 * ordinary["BATCH_SIZE"]
    ordinary["mnist"] = dataclasses.replace(
        mnist, train_images=mnist.train_images[:few], train_labels=mnist.train_labels[:few]
    )
    constant = ordinary["train_epoch"](model, optimizer, 0, ordinary["jax"].random.key(0))

    ours = whole_page(page, "--pictures" in sys.argv)
    try:
        ours["check_schedule"](ours["schedule_with_if"], 3e-3, 3e-2, 117)
        caught = ""
    except Exception as error:
        caught = type(error).__name__
    results = {
        "constant_losses": constant["loss"].tolist(),
        "constant_names": sorted(constant),
        "losses": [history["loss"].tolist() for history in ours["histories"]],
        "rates": [history["learning_rate"].tolist() for history in ours["histories"]],
        "caught": caught,
        "range_rates": ours["rates"].tolist(),
        "range_accuracies": ours["smooth"].tolist(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
