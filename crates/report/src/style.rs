//! The look of pages.

/// CSS of all pages: light and dark as the reader has it, no font or picture from elsewhere, a focus that is seen, print
/// without what only a screen needs.
///
/// Cards do without `content-visibility: auto`: to find what the Tab key goes to next, browsers would lay out one after the other,
/// each time the whole page, which takes seconds for a thousand cards and many minutes for ten thousand.
pub const STYLE: &str = r#"
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f4f5f7; --ink: #1b1f24; --quiet: #57606a; --edge: #d0d7de;
  --link: #0a58a8; --good: #1a7f37; --bad: #b3261e; --chosen: #fff3c4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --raised: #1d2126; --ink: #e3e7ec; --quiet: #9aa4af; --edge: #363d45;
    --link: #77b7f5; --good: #57c271; --bad: #ff8a80; --chosen: #3f371a;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body {
  margin: 0 auto; max-width: 90rem; padding: 0 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
h1, h2, h3 { line-height: 1.25; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; }
code { font: .9em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
img, svg { max-width: 100%; height: auto; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: .5rem; background: var(--ground); padding: .5rem 1rem; z-index: 2; }
.quiet, .facts, .neighbours, .history, figcaption { color: var(--quiet); }
nav { position: sticky; top: 0; z-index: 1; background: var(--ground); border-bottom: 1px solid var(--edge); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: .5rem 0; }
dl.meta { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dl.meta dt { color: var(--quiet); }
dl.meta dd { margin: 0; overflow-wrap: anywhere; }
.verdict { border-left: .4rem solid var(--good); background: var(--raised); padding: .5rem 1rem; margin-top: 1rem; }
.verdict.unhealthy { border-color: var(--bad); }
.verdict h2 { margin-top: .5rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.curves figure, .filters figure { margin: 0; }
.curve, .map { width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .75rem; border-bottom: 1px solid var(--edge); text-align: right; white-space: nowrap; }
thead th { color: var(--quiet); }
.map { border: 1px solid var(--edge); }
.map circle { fill: var(--link); fill-opacity: .55; }
.map a:hover circle { fill-opacity: 1; }
.pixels { image-rendering: pixelated; width: 100%; max-width: 60rem; }
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.filters img { margin-right: .5rem; vertical-align: top; max-width: 47%; }
form.controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: 1rem 0; }
form.controls label { display: grid; gap: .15rem; }
input, select, button {
  font: inherit; padding: .35rem .6rem; color: inherit; background: var(--raised); border: 1px solid var(--edge);
}
form.controls[hidden], .card[hidden] { display: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; align-items: start; }
.card {
  border: 1px solid var(--edge); background: var(--raised); padding: .75rem; min-width: 0; contain: layout paint;
}
.card:target { background: var(--chosen); }
.card p { margin: .25rem 0; font-size: .9rem; }
.card .strip { display: block; margin: .25rem 0; }
details ol { margin: .25rem 0; padding-left: 1.75rem; font-size: .85rem; }
footer { margin-top: 3rem; color: var(--quiet); }
@media print {
  nav, .skip, form.controls { display: none; }
  body { max-width: none; padding: 0; }
  .card, figure, tr { break-inside: avoid; }
}
"#;
