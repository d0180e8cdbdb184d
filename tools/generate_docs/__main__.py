"""Write the generated pages of docs/; tests/docs compares them with the code."""

from pathlib import Path
from typing import Final

from tools.generate_docs import cli_page, error_page, jail_page, state_diagram

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGES: Final = {
    "errors.md": error_page.render_page,
    "cli.md": cli_page.render_page,
    "jail.md": jail_page.render_page,
    "state-machine.md": state_diagram.render_page,
}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (DOCS / name).write_text(render(), encoding="utf-8")
