"""Links to where the project lives, all made from one setting: `tool.jaxcomp.repository`.

    python docs/links.py

writes a badge "Open in Colab" into the first cell of every notebook, or takes it away where the
setting is empty or names no GitHub repository. When a package is built, its project URLs come from
the same setting.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).parents[1]
_BADGE = "[![Open in Colab]("
_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"


def repository(root: Path = ROOT) -> str:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["jaxcomp"]["repository"].rstrip("/")


def project_urls(address: str) -> dict[str, str]:
    if not address:
        return {}
    return {
        "Repository": address,
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def badge(address: str, notebook: str) -> str | None:
    host = "https://github.com/"
    if not address.startswith(host):
        return None
    place = f"{address.removeprefix(host)}/blob/main/notebooks/{notebook}"
    return f"{_BADGE}{_IMAGE})](https://colab.research.google.com/github/{place})"


def write_badges(address: str, folder: Path) -> list[Path]:
    """Bring the first cell of every notebook up to date; return the notebooks that changed."""
    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        cell = notebook["cells"][0]
        lines = "".join(cell["source"]).splitlines()
        lines = [line for line in lines if not line.startswith(_BADGE)]
        while not lines[-1]:
            lines.pop()
        if new := badge(address, path.name):
            lines += ["", new]
        cell["source"] = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        new_text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if new_text != text:
            path.write_text(new_text, encoding="utf-8")
            changed.append(path)
    return changed


class ProjectUrls(MetadataHookInterface):
    """Called by hatchling when a package is built."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the URLs of the package."""
        metadata["urls"] = project_urls(repository(Path(self.root)))


if __name__ == "__main__":
    for notebook in write_badges(repository(), ROOT / "notebooks"):
        print(notebook.relative_to(ROOT))
