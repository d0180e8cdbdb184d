"""Write the generated pages of docs/ and packaging/; tests/docs compares them with the code."""

from pathlib import Path
from typing import Final

from tools.generate_docs import cli_page, error_page, jail_page, man_page, state_diagram

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGES: Final = {
    "errors.md": error_page.render_page,
    "cli.md": cli_page.render_page,
    "jail.md": jail_page.render_page,
    "state-machine.md": state_diagram.render_page,
    **man_page.pages(),
}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(render(), encoding="utf-8")
