"""Follow every link of a built site from its index: links.py DIRECTORY

Each must lead to a file that is there, and to an anchor that it has; every page must be reached, and nothing be loaded
from elsewhere. Where a link leaves the site is not looked at.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("script", "src"), ("link", "href")}  # with the page; the rest by who clicks on it


class Page(HTMLParser):
    """Its anchors, and what it leads to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = {"", "top"}, [], []  # the page itself is both
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)


def problems(site):
    pages, waiting = {}, [site / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in pages:
            continue
        pages[path] = Page(path)
        for there, _ in ours(path, pages[path]):
            if there.suffix == ".html" and there.is_file():
                waiting.append(there)
    for path, page in pages.items():
        name = path.relative_to(site)
        for load in page.loads:
            if urlsplit(load).netloc:
                yield f"{name}: loads {load}"
        for there, anchor in ours(path, page):
            if not there.is_file():
                yield f"{name}: {there} is not there"
            elif there in pages and anchor not in pages[there].anchors:
                yield f"{name}: {there.relative_to(site)} has no #{anchor}"
    for path in sorted(set(site.rglob("*.html")) - pages.keys()):
        yield f"{path.relative_to(site)}: nothing leads there"
    print(f"{len(pages)} pages, {sum(len(page.links) + len(page.loads) for page in pages.values())} links")


def ours(path, page):
    """The file and the anchor of each link that stays here."""
    for link in (*page.links, *page.loads):
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            yield there, unquote(parts.fragment)


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1]).resolve()))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
