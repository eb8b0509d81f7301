//! Sorting and searching of cards in the page itself.

/// JavaScript for a page with cards: sorts and searches what stands in `#cards` by the form `#controls`, which it shows; without
/// it a page reads as well, in the order that it has. Ten thousand cards take it some tens of milliseconds.
pub const SCRIPT: &str = r#"
(() => {
  'use strict';
  const list = document.getElementById('cards');
  const form = document.getElementById('controls');
  if (!list || !form) return;
  const search = form.elements.search, sort = form.elements.sort, shown = document.getElementById('shown');
  const cards = Array.from(list.querySelectorAll('.card'));
  const numbers = ['cluster', 'size', 'purity', 'distance'];
  const facts = new Map(cards.map((card) => {
    const found = { name: card.dataset.name };
    // What is not known comes last, whichever way round.
    for (const key of numbers) found[key] = card.dataset[key] ? Number(card.dataset[key]) : NaN;
    return [card, found];
  }));
  let texts = null;
  const textOf = (card) => [card.dataset.name, card.dataset.class]
    .concat(Array.from(card.querySelectorAll('code'), (path) => path.textContent)).join('\n').toLowerCase();

  function reorder() {
    const [key, way] = sort.value.split(' ');
    const sign = way === 'down' ? -1 : 1;
    cards.sort((one, other) => {
      const a = facts.get(one)[key], b = facts.get(other)[key];
      if (a !== a || b !== b) return (a !== a) - (b !== b) || facts.get(one).cluster - facts.get(other).cluster;
      return (a < b ? -sign : a > b ? sign : 0) || facts.get(one).cluster - facts.get(other).cluster;
    });
    list.append(...cards);
  }

  function select() {
    const wanted = search.value.trim().toLowerCase();
    // Paths are many, and wanted only by who searches.
    if (wanted && !texts) texts = new Map(cards.map((card) => [card, textOf(card)]));
    let n = 0;
    for (const card of cards) {
      const kept = !wanted || card.dataset.cluster === wanted || texts.get(card).includes(wanted);
      if (card.hidden === kept) card.hidden = !kept;
      if (kept) n += 1;
    }
    shown.textContent = n === cards.length ? n + ' clusters' : n + ' of ' + cards.length + ' clusters';
  }

  // A link to a card that the search has hidden shows all again.
  function follow() {
    const card = document.getElementById(location.hash.slice(1));
    if (!card || !card.hidden) return;
    search.value = '';
    select();
    card.scrollIntoView();
  }

  let waiting = 0;
  search.addEventListener('input', () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 120);
  });
  sort.addEventListener('change', reorder);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    select();
  });
  window.addEventListener('hashchange', follow);
  form.hidden = false;
  select();
})();
"#;
