"""How Sphinx builds the site; `python -m tools.site` lays its sources side by side first."""

import pdutils.attacks

# Before a page's code is followed: it loads TensorFlow and ART without their chatter.
pdutils.attacks.art_classifier  # noqa: B018

project = "Pixel deflection"
copyright = "the pdutils authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.githubpages",
    "numpydoc",
    "sphinx_design",
    "sphinx_codeautolink",
    "tools.site",
]
exclude_patterns = ["conf.py"]

# Notebooks are shown as they were executed, and no page asks another machine for a script.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_show = "code"
nb_code_prompt_hide = "code"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# The reference: what a module offers, in the order in which it is written.
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_default_options = {"no-value": True}
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
add_module_names = False
default_role = "py:obj"

# Names in code lead to the reference, and the reference to the notebooks that use them.
codeautolink_autodoc_inject = True
codeautolink_concat_default = True

html_theme = "pydata_sphinx_theme"
html_title = project
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False
html_sidebars = {"*": [], "notebooks/*": [], "results/*": []}
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
