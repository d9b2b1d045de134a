"""The API reference: the docstrings of the package as HTML (pdoc), with every link inside of it checked.

python -m scripts.api_reference outputs/docs
"""

import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse


# What is imported from elsewhere than the package itself in its documents.
MODULES = (
    "bifusion_hf",
    "bifusion_hf.boxes",
    "bifusion_hf.data.annotations",
    "bifusion_hf.data.class_names",
    "bifusion_hf.data.frame_files",
    "bifusion_hf.data.frames",
    "bifusion_hf.data.importing",
    "bifusion_hf.data.recordings",
    "bifusion_hf.evaluation",
    "bifusion_hf.labels",
    "bifusion_hf.presets",
    "bifusion_hf.scenes",
    "bifusion_hf.visualization",
    "bifusion_hf.weights",
)
# Properties of transformers' configurations, which pdoc links and does not show.
NOT_SHOWN = ("id2label", "output_hidden_states")


class Links(HTMLParser):
    """Targets of the links of a page, and the names that links to it may have."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.names |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])


def broken_links(folder: Path) -> list[str]:
    """Links of the HTML pages in a folder that lead to no page, or no place of a page, in it."""
    pages = {path.resolve(): Links(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlparse(target)
            if url.scheme or url.netloc:
                continue
            linked = (path.parent / unquote(url.path)).resolve() if url.path else path
            if linked not in pages or (url.fragment and unquote(url.fragment) not in pages[linked].names):
                broken.append(f"{path.relative_to(folder.resolve())}: {target}")
    return broken


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the pages to the folder that is the only argument; ends with status 1 where a link is broken."""
    (folder,) = map(Path, sys.argv[1:] if argv is None else argv)
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=folder)
    broken = [
        link for link in broken_links(folder) if not link.endswith(tuple(f"Config.{name}" for name in NOT_SHOWN))
    ]
    if broken:
        raise SystemExit("\n".join(["broken links:", *broken]))
    print(f"{len(list(folder.rglob('*.html')))} pages: {folder / 'bifusion_hf.html'}")


if __name__ == "__main__":
    main()
