"""The style sheet of the report: one column of text, two of charts, light and dark, phone to desktop."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #ffffff; --ink: #1d2024; --muted: #59616b; --rule: #e1e2dd;
  --accent: #2a5bc7; --accent-soft: #d5e1fa; --good: #13703f; --good-soft: #e0f2e7;
  --bad: #b02f27; --warn: #8a5a00; --warn-soft: #fdf3d8; --warn-edge: #d9a11a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131519; --card: #1b1e23; --ink: #e6e8eb; --muted: #a1a9b4; --rule: #2e333a;
    --accent: #82abff; --accent-soft: #27395f; --good: #66d69e; --good-soft: #15352a;
    --bad: #ff9489; --warn: #f0c04a; --warn-soft: #30270f; --warn-edge: #a67c12;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; line-height: 1.3; font-weight: 650; letter-spacing: -.01em; margin: 0 0 .35rem; }
h3 { font-size: .8rem; font-weight: 600; color: var(--muted); margin: 0 0 .5rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
section { margin-top: 3rem; }
.kicker { color: var(--accent); font-weight: 650; font-size: .875rem; margin: 0 0 .4rem; }
.lead { color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: 0; font-size: .9rem; }
.facts div { display: flex; gap: .4rem; min-width: 0; }
dt { color: var(--muted); flex: none; } dd { margin: 0; min-width: 0; font-variant-numeric: tabular-nums; }

.warning {
  margin-top: 2rem; padding: .9rem 1.1rem; background: var(--warn-soft);
  border: 1px solid var(--warn-edge); border-left-width: 5px; border-radius: 6px;
}
.warning h2 { font-size: 1rem; color: var(--warn); margin: 0; letter-spacing: 0; }
.warning ul { margin: .3rem 0 0; padding-left: 1.15rem; }

.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr));
  gap: .75rem; margin: 2rem 0 0;
}
.tiles div {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .85rem 1rem;
}
.tiles dt { font-size: .85rem; }
.tiles dd { font-size: .8rem; line-height: 1.45; color: var(--muted); }
.tiles dd.figure {
  font-size: 1.75rem; line-height: 1.3; font-weight: 650; letter-spacing: -.02em;
  color: var(--ink);
}

.table {
  margin: 1.25rem 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  overflow: hidden;
}
.table h3 { padding: .75rem 1rem .35rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table {
  border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal;
}
th, td { padding: .5rem 1rem; text-align: right; vertical-align: top; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--muted); font-weight: 600; vertical-align: bottom; }
thead th:first-child, tbody th { text-align: left; }
tbody th {
  position: sticky; left: 0; z-index: 1; background: var(--card); font-weight: 500;
  white-space: nowrap;
}
td small, th small { display: block; color: var(--muted); font-size: .75rem; white-space: nowrap; }
td.best { font-weight: 700; } td.best small { font-weight: 400; }
td.text, th.text { text-align: left; white-space: nowrap; }
td.plot { text-align: left; width: 30%; }
.better { color: var(--good); } .worse { color: var(--bad); } .unclear { color: var(--muted); }

.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem;
  margin-top: 1.25rem;
}
.panel {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem;
  margin: 0; min-width: 0;
}
.panel figcaption, .panel h3, .table h3 { font-weight: 600; font-size: .9rem; color: var(--ink); margin: 0; }
.panel p { font-size: .9rem; color: var(--muted); margin: .6rem 0 0; }
.panel p.big {
  font-size: 2.5rem; font-weight: 650; line-height: 1.15; letter-spacing: -.02em;
  color: var(--ink); margin: .25rem 0;
}
.panel .facts { display: grid; grid-template-columns: auto 1fr; gap: .15rem .9rem; margin-top: 1rem; }
.panel .facts div { display: contents; }
svg { display: block; }
.chart { width: 100%; height: auto; margin-top: .5rem; overflow: visible; }
.chart text { font-size: 11.5px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart text.note { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .line {
  fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round;
}
.chart .range { fill: var(--accent-soft); stroke: none; }
.chart .guide { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 3; }
.chart .dot, .bar { fill: var(--accent); }
.chart .chosen { fill: var(--card); stroke: var(--ink); stroke-width: 2; }
.share { width: 100%; height: 1.1rem; margin-top: .75rem; }
.empty { fill: none; stroke: var(--muted); stroke-dasharray: 3 3; vector-effect: non-scaling-stroke; }
.interval { width: 160px; height: 22px; }
.interval .zero { stroke: var(--muted); stroke-dasharray: 2 2; }
.interval .span { stroke: currentColor; stroke-width: 2; }
.interval .dot { fill: currentColor; }

details { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin-top: .6rem; }
summary { padding: .7rem 1rem; cursor: pointer; }
summary b { font-weight: 600; }
.verdict { font-size: .85rem; margin-left: .6rem; }
.inside { padding: .25rem 1rem 1rem; }
.inside .table { border: 0; margin: 0; }
.inside .table h3 { padding-left: 0; }
.sample {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.25rem 2rem;
}
.sample ol, .sample ul { margin: 0; padding: 0; font-size: .9rem; }
.sample > div { min-width: 0; }
.history { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem; }
.history li { border: 1px solid var(--rule); border-radius: 6px; padding: .1rem .5rem; min-width: 0; }
.history li:last-child { border-color: var(--accent); }
.recommended { list-style: none; counter-reset: place; }
.recommended li {
  counter-increment: place; display: flex; gap: .6rem; padding: .2rem .5rem;
  border-top: 1px solid var(--rule);
}
.recommended li:first-child { border-top: 0; }
.recommended li::before {
  content: counter(place); color: var(--muted); min-width: 1.3rem; text-align: right; flex: none;
  font-variant-numeric: tabular-nums;
}
.recommended bdi { flex: 1; min-width: 0; text-align: left; }
h1 bdi, .sample bdi {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
}
.recommended .score { color: var(--muted); font-variant-numeric: tabular-nums; flex: none; }
.recommended .hit {
  background: var(--good-soft); border-radius: 6px; border-top-color: transparent;
  font-weight: 600;
}
.recommended .hit .came { color: var(--good); font-size: .8rem; line-height: 1.75; flex: none; }
.truth { margin-top: 1rem; }
.truth .history li { border-color: var(--good); }
.settings th, .settings td {
  text-align: left; font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
.settings th:first-child { position: static; padding-left: 0; }
.settings td { width: 100%; min-width: 7rem; overflow-wrap: anywhere; }
dl.terms {
  margin: 0; font-size: .9rem; display: grid; grid-template-columns: max-content 1fr;
  gap: .35rem 1rem;
}
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }

@media (max-width: 600px) {
  main { padding: 1.75rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  section { margin-top: 2.25rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles div:last-child:nth-child(odd) { grid-column: span 2; }
  .tiles dd.figure { font-size: 1.45rem; }
  .chart text { font-size: 14.5px; }
  th, td { padding: .45rem .7rem; }
  .panel { padding: .85rem; }
  dl.terms { grid-template-columns: 1fr; gap: 0; } dl.terms dd { margin-bottom: .5rem; }
  .verdict { display: block; margin: 0; }
}
@media print {
  body { background: none; }
  .scroll { overflow: visible; }
  .panel, details { break-inside: avoid; }
}
"""
