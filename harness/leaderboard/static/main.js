"use strict";
// Theme, events and start.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const stored = () => { try { return localStorage.getItem("psr-theme"); } catch { return null; } };

function paint(choice) {
  const on = choice === "dark" || (choice !== "light" && dark.matches);
  document.documentElement.dataset.theme = on ? "dark" : "light";
  $("theme").textContent = on ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Use the ${on ? "light" : "dark"} theme`);
  if (table) drawScatter();
}

async function showTab(tab) {
  state.tab = tab;
  state.columns = "";
  state.sort = "";
  await refresh();
}

async function restore(link = location.hash) {
  restoring = true;  // what happens on the way is not saved over the link
  // Closing a dialog is told later, and would then clear what was just read.
  for (const dialog of [$("card"), $("comparison")]) {
    if (dialog.open) await new Promise((done) => { dialog.addEventListener("close", done, {once: true}); dialog.close(); });
  }
  load(link);
  [hash, saved, before] = [link || "#", {...state}, null];
  fillFilters();
  await refresh();
  restoring = false;
  if (state.card) openCard(state.card);
  else if (state.side) openComparison();
  // What is drawn may bring a scroll bar, which makes the table draw itself again: ready is after that.
  for (let i = 0; i < 4; i++) await new Promise((done) => requestAnimationFrame(done));
  document.body.dataset.ready = "true";
}

function listen() {
  $("tabs").addEventListener("click", (event) => event.target.dataset.tab && showTab(event.target.dataset.tab));
  $("tabs").addEventListener("keydown", (event) => {
    const move = {ArrowRight: 1, ArrowLeft: -1, Home: -TABS.length, End: TABS.length}[event.key];
    if (!move) return;
    event.preventDefault();
    const here = TABS.indexOf(state.tab);
    const next = Math.abs(move) === 1 ? (here + move + TABS.length) % TABS.length : move < 0 ? 0 : TABS.length - 1;
    showTab(TABS[next]);
    $(`tab-${TABS[next]}`).focus();
  });
  let wait = 0;
  const changed = (event) => {
    const input = event.target, name = input.dataset.filter;
    if (!name) return;
    state[name] = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
    if (name === "board") fillFilters();
    clearTimeout(wait);
    wait = setTimeout(() => refresh(["board", "attack"].includes(name)), name === "q" ? 120 : 0);
  };
  $("filters").addEventListener("input", changed);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    for (const name of FILTERS) state[name] = DEFAULTS[name];
    fillFilters();
    refresh();
  });
  $("unfilter").addEventListener("click", () => {
    const reset = $("filters").querySelector("[type=reset]");
    reset.click();
    reset.focus({preventScroll: true});  // the one that was clicked is about to go
  });
  for (const name of ["x", "y"]) $(name).addEventListener("change", () => { state[name] = $(name).value; drawScatter(); save(); });
  for (const [name, dialog] of [["card", $("card")], ["side", $("comparison")]]) {
    dialog.addEventListener("close", () => dialogClosed(name));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  $("ranking")?.addEventListener("change", () => { state.ranking = $("ranking").value; drawRanks(); save(); });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();  // the address holds what is shown
    $("results").focus();
    $("results").scrollIntoView();
  });
  $("compare").addEventListener("click", openComparison);
  $("clear").addEventListener("click", () => { state.compare = ""; drawBasket(); save(); table.redraw(true); });
  $("csv").addEventListener("click", exportCsv);
  $("latex").addEventListener("click", exportLatex);
  $("permalink").addEventListener("click", () => copyText(location.href, $("permalink")));
  $("theme").addEventListener("click", () => {
    const choice = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("psr-theme", choice); } catch { /* not kept, then */ }
    paint(choice);
  });
  dark.addEventListener("change", () => paint(stored()));
  window.addEventListener("beforeprint", beforePrint);
  window.addEventListener("afterprint", afterPrint);
  let width = window.innerWidth, resized = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;  // a phone's address bar comes and goes
    width = window.innerWidth;
    clearTimeout(resized);
    resized = setTimeout(() => refresh(), 150);
  });
  window.addEventListener("hashchange", (event) => {
    const link = new URL(event.newURL).hash;
    if ((link || "#") !== hash) restore(link);
  });
  document.addEventListener("click", (event) => { if (!event.target.closest("#chooser")) $("chooser").open = false; });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("chooser").open) { $("chooser").open = false; $("chooser").firstElementChild.focus(); }
  });
}

async function start() {
  paint(stored());
  load(location.hash);
  fillFilters();
  restoring = true;
  await makeTable();
  listen();
  await restore();
}

start();
