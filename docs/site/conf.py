"""Build the pages into a site: plain Markdown in, HTML out, with no network and the same bytes each time.

The source folder is the repository, so a link between two pages is the same in a repository browser and on the site.
The navigation is `docs/README.md`: each heading there is a part of it, each link in the first column of a table a page.
"""

import re
from posixpath import normpath

from sphinx.application import Sphinx

LIST_OF_PAGES = "docs/README"

project = "custody"
author = "custody's authors"
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = LIST_OF_PAGES
include_patterns = ["*.md", "docs/*.md", "deployments/*.md", "custody/*.md", "tests/*.md"]
exclude_patterns = [".*", "build", "custody-*", "docs/site"]
nitpicky = True

# The anchors that a repository browser gives to headings.
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"
highlight_language = "none"

html_theme = "furo"
html_title = "custody"
html_extra_path = ["index.html"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}


def navigation(text: str) -> str:
    """Return a table of contents for each part of the list of pages: `## Part`, then a table that links to pages."""
    contents = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        caption, _, body = part.partition("\n")
        links = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\.md\)", body, re.MULTILINE)
        pages = "\n".join(normpath(f"/docs/{link}") for link in links)
        contents.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n")
    return "\n".join(contents)


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the navigation to the list of pages. A page that the list lacks is a warning of Sphinx, so an error."""
    if name == app.config.root_doc:
        source[0] += "\n" + navigation(source[0])


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", add_navigation)
