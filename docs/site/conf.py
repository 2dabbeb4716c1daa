"""Configuration of the documentation site, which build.py builds from the folder that it assembled."""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

project = "ickd"
copyright = "the authors of ickd"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
html_theme = "furo"
html_title = "ickd"
html_theme_options = {"source_edit_link": ""}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4  # the names of headings are those of GitHub
nb_execution_mode = "off"  # the notebooks are the ones that `make run` executed
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables in the output of cells
nb_mime_priority_overrides = [  # a saved picture in place of a widget, which needs a kernel
    ("html", "application/vnd.jupyter.widget-view+json", None),
]

default_role = "literal"  # single backquotes in docstrings mark code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # a name of several classes, as of a type in a signature, is no link

# What docutils does not convert to MathML, and what stands for it; MathML scales brackets by itself.
TEX = {
    r"\\[bB]igg?[lrm]?(?![a-zA-Z])|\\textstyle(?![a-z])": "",
    r"\\dots(?![a-z])": r"\\ldots",
    r"\\operatorname\*": r"\\operatorname",
    r"^_": "{}_",
    r"\\(bar|hat|tilde) ?(\w)": r"{\\\1 \2{}}",
}
FIELD = re.compile(r"[\w`][^:]{0,70}: \S")  # a line "name: text" of a docstring

logger = logging.getLogger(__name__)


def _mathml(self, node: nodes.Element, as_block: bool) -> None:
    """Write a formula as MathML, which browsers display without a script."""
    formula = node.astext()
    for pattern, replacement in TEX.items():
        formula = re.sub(pattern, replacement, formula)
    try:
        self.body.append(latex2mathml.tex2mathml(formula, as_block=as_block))
    except (SyntaxError, MathError, IndexError) as error:
        logger.warning("the formula %r cannot be converted: %s", node.astext(), error, location=node)
        self.body.append(f"<code>{html.escape(node.astext())}</code>")
    raise nodes.SkipNode


def _restructured(app, what, name, obj, options, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: lines "name: text" that no heading precedes become a list."""
    found: list[str] = []
    for paragraph in re.split(r"\n(?=\s*\n)|(?<=Returns:)\n|\n(?=Raises:)", "\n".join(lines)):
        part = paragraph.strip("\n").split("\n")
        indent = len(part[0]) - len(part[0].lstrip())
        fields = [line for line in part if line[indent : indent + 1].strip()]
        if what == "module" and indent:  # columns
            found += ["", ".. code-block:: text", "", *part]
        elif all(FIELD.match(line.strip()) for line in fields) and len(part) > 1:
            for line in part:
                name, _, text = line.strip().partition(": ")
                shown = ["", f"* {name} – {text}"] if line in fields else [f"  {line.strip()}"]
                found += [" " * indent + one for one in shown]
        else:
            found += paragraph.split("\n")
    lines[:] = [re.sub(r"(?<![`*])([|*])(?=\w)|([|])", r"\\\g<0>", line) for line in found]


def setup(app):
    app.connect("autodoc-process-docstring", _restructured, priority=400)  # before napoleon
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: _mathml(self, node, False), None),
        block_renderers=(lambda self, node: _mathml(self, node, True), None),
    )
