"""Configuration of Sphinx. Pages that are made from other files are written by _pages.py first."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import _pages  # noqa: E402

_pages.write_all(HERE)

# What an extension and Sphinx have to settle with each other.
warnings.filterwarnings("ignore", message=".*set_application")

info = metadata("cplmixvi")
project = "cplmixvi"
author = "cplmixvi contributors"
copyright = author
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
root_doc = "index"
# The list beside a class has its methods by their own names.
toc_object_entries_show_parents = "hide"
templates_path = ["_templates"]
# The first one is what autosummary writes.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints", "_templates", "generated/benchmark_*.md"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Notebooks are shown as they were saved: `make tutorials` runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # sphinx_autodoc_typehints adds them to the parameters
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
typehints_defaults = "braces"
always_use_bars_union = True

html_theme = "sphinx_book_theme"
html_title = "cplmixvi"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
# The sidebar has the search already; an empty entry of the theme's own would be a second one above every page.
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "navbar_persistent": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Inventories are fetched from the network, which `make docs` does without.
if os.environ.get("READTHEDOCS") or os.environ.get("DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/main", None),
    }


def skip_foreign(app, what, name, obj, skip, options):
    """Leave out what classes inherit from other packages: it is documented there."""
    home = getattr(getattr(obj, "fget", obj), "__module__", None)
    # Fields of a named tuple are in its docstring.
    if skip or name.startswith("_") or type(obj).__name__ == "_tuplegetter":
        return True
    if callable(obj) or isinstance(obj, property):
        return True if home is None or not str(home).startswith("cplmixvi") else None
    return None


def public_bases(app, name, obj, options, bases):
    """Leave out the parts that a class of ours is put together from: their methods are on its page."""
    bases[:] = [
        base for base in bases if not (base.__module__.startswith("cplmixvi") and base.__name__.endswith("Mixin"))
    ]


def setup(app):
    """Connect the hooks."""
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-bases", public_bases)
