"""How the page of a reproduction looks."""

from chameleon_lora.report.style import BASE_STYLE

STYLE = (
    BASE_STYLE
    + """\
.rows tbody th { width: 30%; }
@media (max-width: 40rem) {
  .rows { font-size: 0.82rem; }
  .rows th, .rows td { padding: 0.4rem; }
}
.rows td:last-child { white-space: nowrap; }
.partly { color: var(--partly); }
.broken { color: var(--broken); }
.key { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; margin: 0.75rem 0 0; font-size: 0.88rem; }
.key div { display: flex; gap: 0.4rem; }
.key dd { margin: 0; color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; margin: 0 0 1rem; }
.figures dt { color: var(--soft); font-size: 0.85rem; }
.figures dd { margin: 0; }
.again { color: var(--soft); font-size: 0.88rem; display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
"""
)
