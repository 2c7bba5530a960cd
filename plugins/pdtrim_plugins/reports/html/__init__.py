"""The page of a run: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pdtrim_core.api import PdtrimError, Report, read_record, visible, write_whole

if TYPE_CHECKING:
    from pdtrim_core import Outcome, RunRecord


class Html(Report):
    """Writes report.html, a page with pictures: what was removed and why, how good the results are, what it saves.

    The file needs no network and no other file. `pdtrim-core report` writes it again, and can compare several runs on one page.
    """

    name = "html"
    file: ClassVar[str] = "report.html"

    def report(self, outcome: Outcome, out: Path) -> Path:
        """Write the page of a finished run, with the benchmark results in its folder."""
        return self.page([read_record(out, outcome)], out / self.file)

    def page(self, records: Sequence[RunRecord], file: Path) -> Path:
        """Write the page of a run, or one page with several side by side."""
        # Imported here, because listings must load neither jinja2 nor matplotlib.
        from pdtrim_plugins.reports.html.comparison import comparison  # noqa: PLC0415
        from pdtrim_plugins.reports.html.single import single  # noqa: PLC0415

        page = single(records[0]) if len(records) == 1 else comparison(records)
        return write_whole(file, _rendered(page))


def _rendered(page: object) -> str:
    try:
        import jinja2  # noqa: PLC0415 - listings must not load it
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise  # it is there, and lacks something itself
        raise PdtrimError(
            "report 'html' needs jinja2, which is not installed: pip install jinja2, then pdtrim-core report RUN"
        ) from None
    here = jinja2.PackageLoader("pdtrim_plugins.reports.html", ".")
    templates = jinja2.Environment(
        loader=here,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    return templates.get_template("page.j2").render(page=page)


def _shown(value: Any) -> Any:
    """Return what a template fills in; text that would turn other text around is written out, in markup too."""
    return type(value)(visible(value)) if isinstance(value, str) else value
