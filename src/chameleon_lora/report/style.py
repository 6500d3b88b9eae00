"""How pages look: light and dark, from a phone's width to a desk's."""

BASE_STYLE = """\
:root {
  --paper: #ffffff; --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --shade: #f6f8fa;
  --link: #0550ae; --holds: #0a6640; --partly: #7a4d00; --fails: #a40e26; --broken: #57606a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e6edf3; --soft: #9da7b3; --line: #363d46; --shade: #1c2229;
    --link: #79b8ff; --holds: #56d39b; --partly: #e8b54a; --fails: #ff8f98; --broken: #9da7b3;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2rem 0 0.75rem; }
header p, section > p { max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.skip { position: absolute; left: -100vw; background: var(--paper); padding: 0.5rem 1rem; }
.skip:focus { left: 0; z-index: 1; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { padding: 0.45rem 0.75rem; text-align: left; vertical-align: top; }
tr + tr > *, tbody > tr > * { border-top: 1px solid var(--line); }
thead th { background: var(--shade); color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
td.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
.verdict { font-weight: 600; white-space: nowrap; }
.holds { color: var(--holds); }
.fails { color: var(--fails); }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
section h2 { margin-top: 1.5rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; }
figure { margin: 0.5rem 0; max-width: 38rem; min-width: 0; }
.plot svg { display: block; width: 100%; height: auto; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--soft); padding: 0.25rem 0; }
details .scroll { margin-top: 0.5rem; }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
"""
