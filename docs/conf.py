"""Sphinx's configuration: `python -m sphinx -W docs docs/_build` makes the site."""

import os

from jupyter_client.manager import KernelManager

import jbn

# Notebooks run on the CPU, whatever the machine has.
os.environ["JAX_PLATFORMS"] = "cpu"
# Without encryption, ipykernel warns.
KernelManager.transport_encryption.default_value = "auto"

project = "jbn"
author = "The jbn authors"
release = version = jbn.__version__
html_title = "jbn"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_output_stderr = "warn"
nb_merge_streams = True

# Docstrings: a name in backticks links to its entry in the reference.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autosummary_generate = False
autodoc_typehints = "none"
python_maximum_signature_line_length = 80
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # Attributes are one list.
napoleon_attr_annotations = False

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],
}
