"""The documentation site builds without a warning, and loads nothing from other hosts."""

import html.parser
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

_ROOT = pathlib.Path(__file__).parents[2]

# What makes a browser load something, and in which attribute.
_LOADING = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The built site."""
    for module in ("mkdocs", "material", "mkdocs_same_dir", "mkdocstrings_handlers.python"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"{module}, of the extra [docs], is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = ["build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        # Notices about a future mkdocs 2, which pyproject.toml excludes.
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Loads(html.parser.HTMLParser):
    """Collects the addresses from which a page loads something."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(_LOADING.get(tag, ""))
        if address:
            self.addresses.append(address)


def _is_foreign(address: str) -> bool:
    return re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", address) is not None


def test_every_page_of_the_folder_is_in_the_site(site):
    pages = {page.stem for page in (_ROOT / "docs").glob("*.md")}

    assert pages <= {page.stem for page in site.glob("*.html")}


def test_pages_load_nothing_from_other_hosts(site):
    loads = set()
    for page in site.rglob("*.html"):
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        loads |= set(parser.addresses)

    assert any(address.endswith(".js") for address in loads)
    assert not {address for address in loads if _is_foreign(address)}


def test_styles_load_nothing_from_other_hosts(site):
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        addresses = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", text)
        assert not [address for address in addresses if _is_foreign(address)]


def test_no_page_makes_the_theme_fetch_mermaid(site):
    # The theme's script fetches mermaid from a public host as soon as a page has a diagram.
    assert not [
        page.name
        for page in site.rglob("*.html")
        if re.search(r"class=\"[^\"]*\bmermaid\b", page.read_text(encoding="utf-8"))
    ]
