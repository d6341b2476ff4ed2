"""Pages as tests read them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from acdc.report.view import Figure, Graphic, Section
from acdc.report.writer import write_page


def html_of(*sections: Section) -> str:
    """Sections without their pictures, as a page has them; every white space is one blank."""
    texts = [replace(s, blocks=[b for b in s.blocks if not isinstance(b, Figure | Graphic)]) for s in sections]
    with tempfile.TemporaryDirectory() as folder:
        write_page(Path(folder) / "page.html", "Title", "Lead", texts)
        return " ".join((Path(folder) / "page.html").read_text().split())
