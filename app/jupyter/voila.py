"""Settings of the page that `python -m pdutils app` serves; Voila reads them."""

from pathlib import Path

here = Path(__file__).resolve().parent
root = here.parent.parent

c = get_config()  # noqa: F821

c.VoilaConfiguration.template = "explorer"
c.VoilaConfiguration.allow_template_override = "NO"
c.VoilaConfiguration.allow_theme_override = "NO"
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.resources = {
    "explorer": {"pages": (root / "results" / "index.html").is_file()}
}

# Parts of JupyterLab that the explorer has no use for.
c.VoilaConfiguration.extension_denylist = [
    "@voila-dashboards/jupyterlab-preview",
    "jupyterlab_pygments",
]

# The page links to the site, and nothing else of the folder is served.
c.Voila.root_dir = str(root)
c.VoilaConfiguration.file_allowlist = [
    r"results/([\w-]+/)*[\w.-]*\w\.(html|css|js|json|png|svg|webp|woff2|ipynb)"
]

# Somebody who left without closing the page does not keep a kernel for ever.
c.AsyncMappingKernelManager.cull_idle_timeout = 3600
c.AsyncMappingKernelManager.cull_interval = 300
