"""The documentation as a site: README.md, the pages of docs/ as they lie there, the reference out of the docstrings.

``make docs`` builds it, and every warning is an error: a link that leads nowhere, a page that NAVIGATION lacks, a
public name that docs/reference/ lacks.
"""

import shutil
from pathlib import Path

from sphinx.addnodes import pending_xref
from sphinx.util import logging

import vhostnet
import vhostnet.aio
import vhostnet.qmp

ROOT = Path(__file__).resolve().parents[2]  # the source directory, too, so that links are what they are on GitHub

# By who reads it. A new page is a line here.
NAVIGATION = {
    "Running many NICs": [
        "docs/broker",
        "docs/real-hosts",
        "docs/lasting",
        "docs/hotplug",
        "docs/migration",
        "docs/slow",
        "docs/observability",
        "docs/security",
        "docs/reliability",
        "docs/support",
        "SECURITY",
    ],
    "Using the library": [
        "docs/scale",
        "docs/asyncio",
        "docs/handover",
        "docs/libvirt",
        "docs/qemu",
        "examples/README",
    ],
    "Reference": [
        "docs/reference/nics",
        "docs/reference/specs",
        "docs/reference/qemu",
        "docs/reference/programs",
        "docs/reference/errors",
    ],
    "Measuring, and reading the code": [
        "docs/performance",
        "bench/README",
        "docs/order",
        "docs/vhost",
        "docs/engines",
        "docs/house",
        "CONTRIBUTING",
        "docs/releasing",
        "CHANGELOG",
    ],
}

project = "vhostnet"
version = release = vhostnet.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.rst", "bench/*.md", "examples/*.md"]
exclude_patterns = [".*", "build"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4  # by GitHub's rule
add_module_names = False
smartquotes = False  # a quoted value is one
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
html_theme = "furo"
html_title = f"vhostnet {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_domain_indices = html_show_sphinx = html_show_copyright = False


def add_navigation(app, page, source):
    if page == root_doc:
        for reader, pages in NAVIGATION.items():
            source[0] += "\n\n```{toctree}\n:hidden:\n:caption: " + "\n".join((reader, "", *pages)) + "\n```"


def leave_directories(app, page):
    """A link to a directory of the repository has nothing on the site to lead to: its text is left."""
    here = (ROOT / app.env.docname).parent
    for link in list(page.findall(pending_xref)):
        if (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def require_entries(app, env):
    modules = (vhostnet, vhostnet.aio, vhostnet.qmp)
    public = {f"{module.__name__}.{name}" for module in modules for name in module.__all__}
    for name in sorted(public - env.domains["py"].objects.keys()):
        logging.getLogger(__name__).warning("%s has no entry in docs/reference/", name)


def skip_field(app, what, name, value, skip, options):
    """A NamedTuple's fields are in its signature; of each its own docstring has but the number."""
    return True if type(value).__name__ == "_tuplegetter" else None


def make_index(app, failed):
    if not failed:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", leave_directories)
    app.connect("env-check-consistency", require_entries)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("build-finished", make_index)
