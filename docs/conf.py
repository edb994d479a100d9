"""The documentation's build: MyST pages whose cells run, pages generated from the package, nothing fetched."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NOTEBOOK = "article.ipynb"
sys.path.insert(0, str(HERE))
# the cells run in kernels of their own, which inherit these
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cells call vit-flax
os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3", VIT_FLAX_NO_CACHE="1", HF_HUB_OFFLINE="1")

# JAX's plugins tell of a GPU that is not there, in this process and in the kernels of the cells, which begin with this
QUIET = "from vit_flax.cli import startup\n\nstartup.hide_absent_accelerators()\n"
exec(QUIET)
KERNELS = tempfile.TemporaryDirectory()
startup = Path(KERNELS.name, "profile_default", "startup")
startup.mkdir(parents=True)
(startup / "quiet.py").write_text(QUIET)
os.environ["IPYTHONDIR"] = KERNELS.name

# isort: split
import generate  # noqa: E402  # beside this file
import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

import vit_flax  # noqa: E402

project = "vit_flax"
author = "the vit_flax authors"
copyright = "2026, the vit_flax authors"
version = release = vit_flax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "README.md"]
nitpicky = False  # shapes of jaxtyping are no references
suppress_warnings = ["misc.highlighting_failure"]
default_role = "code"  # docstrings write `name` for code

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
# a cell that fails fails the build
nb_execution_mode = "cache" if os.environ.get("DOCS_CACHE") else "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds a cell; a busy machine is slow
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # no page asks another host for anything

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "vit_flax"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # one field of search is enough
}
html_context = {"default_mode": "auto"}


def setup(app):
    """Writes the generated pages before Sphinx lists what there is, and the article's notebook beside its page."""
    app.connect("builder-inited", lambda app: generate.write_pages(Path(app.srcdir) / "generated"))
    app.connect("build-finished", copy_notebook)


def copy_notebook(app, error):
    """Writes the article as a notebook with its outputs; myst-nb leaves one without them behind."""
    bare = Path(app.outdir).parent / "jupyter_execute" / NOTEBOOK
    if error is None and app.builder.format == "html" and bare.exists():
        notebook = nbformat.read(bare, as_version=4)
        NotebookClient(notebook, timeout=nb_execution_timeout).execute()
        nbformat.write(notebook, Path(app.outdir) / NOTEBOOK)
