// Keeps a page as it would be if it were loaded anew: texts and bars by their names, and what changes more as a whole.
"use strict";

(function () {
  const { events, fragment } = document.body.dataset;
  const part = document.getElementById("live");
  const say = document.getElementById("say");
  const connection = document.getElementById("connection");
  if (!events || !part || !window.EventSource) return;

  function show(key, text) {
    for (const element of document.querySelectorAll(`[data-live="${CSS.escape(key)}"]`)) {
      if (element instanceof HTMLProgressElement) {
        element.hidden = text === "";
        if (text !== "") element.value = Number(text);
      } else if (element.textContent !== text) {
        element.textContent = text;
      }
    }
    for (const button of document.querySelectorAll(`button[data-state="${CSS.escape(key)}"]`)) {
      button.disabled = !button.dataset.when.split(" ").includes(text);
    }
  }

  // Whoever is on a link of the part, or has scrolled a table, shall stay there.
  function replace(html) {
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const selector = focused && (focused.id ? `#${CSS.escape(focused.id)}`
      : focused.getAttribute("aria-labelledby") && `[tabindex][aria-labelledby="${focused.getAttribute("aria-labelledby")}"]`);
    const scrolled = [...part.querySelectorAll(".wide")].map((table) => table.scrollLeft);
    part.innerHTML = html;
    part.querySelectorAll(".wide").forEach((table, at) => { table.scrollLeft = scrolled[at] || 0; });
    const again = selector && part.querySelector(selector);
    if (again) again.focus({ preventScroll: true });
  }

  let latest = 0;
  async function refresh() {
    const number = ++latest;
    try {
      const answer = await fetch(fragment, { headers: { accept: "text/html" }, redirect: "error" });
      // Signed out meanwhile: the page itself leads to the form.
      if (answer.status === 401) return location.reload();
      const html = await answer.text();
      if (answer.ok && number === latest) replace(html);
    } catch (error) {
      connection.hidden = false;
    }
  }

  const source = new EventSource(events);
  source.addEventListener("open", () => { connection.hidden = true; });
  source.addEventListener("error", () => { connection.hidden = false; });
  source.addEventListener("values", (event) => {
    for (const [key, text] of Object.entries(JSON.parse(event.data))) show(key, text);
  });
  source.addEventListener("refresh", (event) => {
    const sentence = JSON.parse(event.data).say;
    if (sentence) say.textContent = sentence;
    refresh();
  });
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();
