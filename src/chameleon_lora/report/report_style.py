"""How the page of a report looks."""

from chameleon_lora.report.style import BASE_STYLE

OWN = """\
h3 { font-size: 1rem; margin: 1.25rem 0 0.5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 1rem 0 0; padding: 0; }
nav a { display: inline-block; padding: 0.2rem 0; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.25rem; margin: 0.5rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.warnings { border: 1px solid var(--partly); border-radius: 6px; margin: 1rem 0; padding: 0.5rem 1rem; }
.warnings p { margin: 0.3rem 0; overflow-wrap: anywhere; }
.warnings strong { color: var(--partly); }
td { font-variant-numeric: tabular-nums; }
.number { text-align: right; }
main { max-width: 76rem; }
th, td { padding: 0.4rem 0.55rem; }
tbody th { white-space: nowrap; position: sticky; left: 0; background: var(--paper); }
thead th:first-child { position: sticky; left: 0; }
td.long { min-width: 16rem; overflow-wrap: anywhere; }
.sortable td, .sortable thead th + th { text-align: right; }
.sortable tbody { font-size: 0.95em; }
.sortable th, .sortable td { padding: 0.2rem 0.75rem; }
th button {
  font: inherit; color: inherit; background: none; border: 0; padding: 0.2rem 0; cursor: pointer;
  text-align: inherit; white-space: nowrap;
}
th button:hover { text-decoration: underline; }
th button::after { content: "\\2195"; display: inline-block; width: 1em; text-align: center; opacity: 0.45; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
footer { border-top: 1px solid var(--line); color: var(--soft); font-size: 0.88rem; margin-top: 2rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  table { font-size: 0.82rem; }
  th, td { padding: 0.4rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 0.5rem; }
  td.long { min-width: 12rem; }
  tbody th { white-space: normal; min-width: 6.5rem; max-width: 9rem; }
}
@media print {
  body { font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td, tbody th, td.number { padding: 0.15rem 0.3rem; white-space: normal; position: static; }
  main { max-width: none; padding: 0; }
  nav, .skip, details:not([open]) { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr, .warnings { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; }
  th button::after { content: none; }
}
"""
STYLE = BASE_STYLE + OWN
