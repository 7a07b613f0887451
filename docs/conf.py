"""Sphinx settings; ``make docs`` builds the pages, and any warning is an error."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "smnas_optuna"
author = "the smnas_optuna authors"
copyright = author
version = release = installed_version("smnas_optuna")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "generated",
]
exclude_patterns = ["_build"]
# What a page shows must be there for readers who are offline.
html_theme = "furo"
html_title = "smnas_optuna"
html_static_path: list[str] = []
html_extra_path: list[str] = []
html_theme_options = {"source_directory": "docs/"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

highlight_language = "none"
smartquotes_action = "qe"  # no dashes: an option begins with two
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

nitpicky = True
# Other packages' names: their pages are not at hand where these are built, which may be without a network.
_OTHERS = (
    "collections|datetime|multiprocessing|pathlib|signal|optuna|pydantic|pydantic_core|rich|torch|mmengine|mmdet|numpy|"
    "pandas|pd|plotly|go|sqlalchemy"
)
# Those of variables that stand for a type have none.
_VARIABLES = r"smnas_optuna\.(parts\.part\._[PF]|study\.patient_storage\._T)"
nitpick_ignore_regex = [("py:.*", rf"({_OTHERS})\..*"), ("py:class", _VARIABLES)]
