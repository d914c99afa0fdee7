"use strict";
// What is shown: state, permalink, filters and table.

const DEFAULTS = {tab: "overview", board: DATA.start, dataset: "", defence: "", aggregator: "", compressor: "", attack: "",
  q: "", official: "", sort: "", columns: "", card: "", compare: "", side: "", x: "", y: "", ranking: ""};
const FILTERS = ["board", "dataset", ...AXES, "attack", "q", "official"];
const state = {...DEFAULTS};
const STEPS = ["tab", "board", "card", "side"];  // which the browser's Back undoes; filters and the like it does not
let table = null, shown = [], restoring = false, drawing = false;
let hash = null, saved = {...DEFAULTS}, before = null;  // before: the link that the last step left, if it opened a dialog

function save() {
  if (restoring) return;
  const query = new URLSearchParams();
  for (const [name, usual] of Object.entries(DEFAULTS)) if (state[name] !== usual) query.set(name, state[name]);
  const link = query.toString() ? `#${query}` : "#";
  if (link === hash) return;
  const steps = STEPS.filter((name) => state[name] !== saved[name]);
  saved = {...state};
  if (steps.length && link === before) {  // a dialog is closed again: no step of its own
    [hash, before] = [before, null];
    history.back();
    return;
  }
  before = steps.some((name) => ["card", "side"].includes(name) && state[name]) ? hash : null;
  hash = link;
  history[steps.length ? "pushState" : "replaceState"](null, "", hash);
}

function load(link) {
  const query = new URLSearchParams(link.slice(1));
  for (const [name, usual] of Object.entries(DEFAULTS)) state[name] = query.has(name) ? query.get(name) : usual;
  if (!TABS.includes(state.tab)) state.tab = DEFAULTS.tab;
  const gone = [];  // what the link was made for, on a page that had it
  if (state.board && !DATA.boards.some((board) => board.label === state.board)) {
    gone.push(`the board ${state.board}`);
    state.board = DEFAULTS.board;
  }
  if (state.attack && !ROWS.some((row) => row.attacks.has(state.attack))) state.attack = "";
  for (const name of ["x", "y"]) if (!byKey.has(state[name])) state[name] = "";
  state.compare = compared().map((row) => row.id).join(",");
  if (!byId.has(state.card)) {
    if (state.card) gone.push("the row it opens");
    state.card = "";
  }
  $("gone").hidden = !gone.length;
  $("gone").textContent = `This page does not have what the link names: ${gone.join(" and ")}.`;
}

const compared = () => [...new Set(state.compare.split(","))].map((id) => byId.get(id)).filter((row) => row);

function fillFilters() {
  const inBoard = ROWS.filter((row) => !state.board || row.board === state.board);
  const unique = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b)).map((value) => [value, value]);
  const field = (name) => document.querySelector(`[data-filter=${name}]`);
  options(field("board"), DATA.boards.map((b) => [b.label, b.label + (b.superseded ? " (superseded)" : "")]), "all boards");
  options(field("dataset"), unique(ROWS.map((row) => row.dataset)), "all");
  for (const axis of AXES) options(field(axis), unique(inBoard.map((row) => row[axis])), "all");
  const attacks = new Map();
  for (const row of inBoard) {
    for (const cell of row.source.c.filter((one) => one.y !== "clean")) {
      if (!attacks.has(cell.threat)) attacks.set(cell.threat, new Set());
      attacks.get(cell.threat).add(cell.attack);
    }
  }
  options(field("attack"), [...attacks].flatMap(([threat, own]) => [
    ...(own.size > 1 ? [[JSON.stringify([threat]), `all ${own.size} of ${threat}`, threat]] : []),
    ...[...own].map((attack) => [JSON.stringify([threat, attack]), attack, threat])]), "all threats", true);
  for (const name of FILTERS) {
    const input = field(name);
    if (input.type === "checkbox") input.checked = state[name] === "1";
    else if (input.tagName === "SELECT") {
      input.value = state[name];
      if (input.selectedIndex < 0) { state[name] = ""; input.value = ""; }
    } else input.value = state[name];
  }
}

function passing() {
  const words = state.q.toLowerCase().split(/\s+/).filter((word) => word);
  return ROWS.filter((row) => (!state.board || row.board === state.board) && (!state.dataset || row.dataset === state.dataset)
    && AXES.every((axis) => !state[axis] || row[axis] === state[axis]) && (!state.attack || row.attacks.has(state.attack))
    && (!state.official || row.official) && words.every((word) => row.words.includes(word)));
}

function present() {
  const keys = new Set(DATA.boards.filter((board) => !state.board || board.label === state.board).flatMap((b) => b.columns));
  return COLUMNS.filter((column) => keys.has(column.key));
}

function usualColumns() {
  const keys = present().filter((column) => column.tabs.includes(state.tab)).map((column) => column.key);
  const texts = [];
  if (!state.board && DATA.boards.length > 1) texts.push("board");
  if (new Set(ROWS.filter((row) => !state.board || row.board === state.board).map((row) => row.submission)).size > 1)
    texts.push("submission");
  return window.innerWidth > 720 ? [...texts, ...keys, "state"] : [...keys, "state", ...texts];
}

function visibleColumns() {
  const known = new Set([...Object.keys(TEXTS), ...present().map((column) => column.key)]);
  const chosen = state.columns ? state.columns.split(",").filter((key) => known.has(key)) : usualColumns();
  return state.columns === "-" ? [] : chosen;
}

function sorter(a, b, first, second, column, direction) {
  if (a === null || b === null) return a === b ? 0 : (a === null) === (direction === "asc") ? 1 : -1;
  return a < b ? -1 : a > b ? 1 : 0;
}

function header(title, unit, arrow, note) {
  // A button, so that the keyboard reaches it: its click is the header's click, which sorts.
  return () => h("button", {type: "button", class: "head", title: note}, title,
    h("small", {}, `${unit ? `${unit} ` : ""}${arrow}`, arrow ? h("span", {class: "unseen"}, arrow === "↑" ? " higher is better" : " lower is better") : null));
}

function pickNode(cell) {
  const row = cell.getData();
  const box = h("input", {type: "checkbox", "aria-label": `Compare ${row.name}, ${row.submission}`,
    onchange: () => choose(row.id, box.checked), onclick: (event) => event.stopPropagation()});
  box.checked = compared().includes(row);
  return box;
}

function nameMarks(row) {
  const marks = [];
  if (DATA.boards[row.source.b].superseded) marks.push(h("span", {class: "badge"}, "superseded"));
  if (!row.official) marks.push(h("span", {class: "badge"}, "unofficial"));
  return marks;
}

// In the order of a row's name: where a board is chosen, first the axis by which its rows differ.
function namedAxes() { return DATA.boards.find((board) => board.label === state.board)?.named || AXES; }

function namedAxesInWords() { const [first, second, third] = namedAxes(); return `${first}, ${second} / ${third}`; }

// labels: the row's own or its short ones.
function nameParts(labels) {
  const [first, second, third] = namedAxes().map((axis) => labels[axis]);
  return [h("b", {}, first), h("small", {}, `${second} / ${third}`)];
}

function nameNode(cell) {
  const row = cell.getData();
  const button = h("button", {type: "button", class: "open", title: row.name, "data-row": row.id,
    onclick: (event) => { event.stopPropagation(); openCard(row.id); }}, ...nameParts(row.short));
  return h("span", {class: "name"}, button, ...nameMarks(row));
}

// room: how many flags there is room for; of the others it says how many there are, and which on hovering.
function stateNode(row, room = Infinity) {
  const one = DATA.submissions[row.source.s];
  const verdict = one.verification ? one.verification.verdict : "unverified";
  const failed = row.source.c.filter((one) => one.x === "failed").length;
  const all = [...flagsOf(row).map((one) => [one.text, flagNode(one)]),
    ...(failed ? [[`${failed} failed`, h("span", {class: "badge warn"}, `${failed} failed`)]] : [])];
  const rest = all.slice(room).map(([text]) => text).join(", ");
  return h("span", {class: "badges"}, h("span", {class: `badge ${verdict}`}, verdict),
    rest ? h("span", {class: "badge", title: `also: ${rest}`}, `+${all.length - room}`, h("span", {class: "unseen"}, ` more: ${rest}`)) : null,
    ...all.slice(0, room).map(([, node]) => node));
}

function textNode(cell) { return h("span", {class: "text", title: String(cell.getValue())}, String(cell.getValue())); }

// In pixels, at least: the longest word of the title and the longest interval, of which a minus must not be cut off.
function width(column) {
  const word = Math.max(...column.title.split(" ").map((part) => part.length));
  const values = ROWS.filter((row) => !state.board || row.board === state.board).map((row) => [row, row.values[column.place]]);
  const interval = Math.max(0, ...values.map(([row, value]) => (value ? below(row, column, value).length : 0)));
  return Math.max(92, word > 9 ? Math.max(112, Math.min(8 * word + 12, 220)) : 0, Math.floor(6.2 * interval + 18));
}

function definitions() {
  const wide = window.innerWidth > 720;
  const fixed = {headerSort: false, frozen: wide, resizable: false};
  const found = [
    {title: "Compare", field: "id", width: 44, formatter: pickNode, hozAlign: "center", ...fixed,
      titleFormatter: () => h("span", {class: "unseen"}, "Compare")},
    {title: "Configuration", field: "name", width: wide ? Math.max(212, Math.min(276, window.innerWidth - 1068)) : 172, formatter: nameNode, sorter, frozen: wide,
      headerSortTristate: true, titleFormatter: header("Configuration", namedAxesInWords(), "", "")},
  ];
  for (const key of visibleColumns()) {
    const column = byKey.get(key);
    if (column) {
      found.push({title: column.title, field: key, sorter, hozAlign: "right", headerHozAlign: "right",
        minWidth: width(column),
        widthGrow: 1, headerSortStartingDir: column.better === "higher" ? "desc" : "asc",
        formatter: (cell) => valueNode(cell.getData(), column),
        titleFormatter: header(column.title, column.unit, DATA.arrows[column.better], `${column.note}; ${column.better} is better`)});
    } else {
      // A flag is a long word, and half of one says something else.
      found.push({title: TEXTS[key], field: key, sorter, minWidth: {state: 152, board: 134}[key] || 112,
        formatter: key === "state" ? (cell) => stateNode(cell.getData(), 1) : textNode,
        titleFormatter: header(TEXTS[key], "", "", "")});
    }
  }
  return found;
}

function sortList() {
  const known = new Set(["name", ...visibleColumns()]);
  const chosen = state.sort.split(",").filter((part) => part).map((part) => part.split(":"))
    .filter(([column]) => known.has(column)).map(([column, dir]) => ({column, dir: dir === "asc" ? "asc" : "desc"}));
  if (chosen.length) return chosen;
  const first = visibleColumns().find((key) => byKey.has(key));
  return first ? [{column: first, dir: byKey.get(first).better === "higher" ? "desc" : "asc"}] : [];
}

function makeTable() {
  table = new Tabulator("#table", {
    data: [], index: "id", columns: definitions(), layout: "fitColumns", maxHeight: "78vh", rowHeight: 52,
    initialSort: sortList(), columnDefaults: {headerWordWrap: true},
    nestedFieldSeparator: false,  // the name of a score may hold dots
    // Left to itself it draws all rows anew whenever it scrolls into sight, under the reader's pointer.
    autoResize: false, columnHeaderSortMulti: true, resizableColumnFit: false, headerSortElement: "<span aria-hidden='true'></span>",
  });
  table.on("rowClick", (event, row) => {
    if (!event.target.closest("input,button,a") && !String(getSelection())) openCard(row.getData().id);
  });
  table.on("dataSorted", (sorters) => {
    if (restoring || drawing || !sorters.length) return;
    const usual = state.sort ? "" : sortList().map((one) => `${one.column}:${one.dir}`).join(",");
    const now = sorters.map((one) => `${one.field}:${one.dir}`).join(",");
    if (now !== usual) state.sort = now;
    save();
  });
  $("table").setAttribute("aria-labelledby", "table-title");
  return new Promise((done) => table.on("tableBuilt", () => {
    // A grid's children are rows and groups of them; what scrolls is reached by the buttons within.
    $("table").querySelector(".tabulator-tableholder").removeAttribute("tabindex");
    done();
  }));
}

// One after the other: a change that comes while the table is being drawn waits for its turn.
let turn = Promise.resolve();

function refresh(columnsToo = true) {
  turn = turn.then(() => redraw(columnsToo));
  return turn;
}

async function redraw(columnsToo) {
  const ranked = state.tab === "ranks", gone = $("rows").hidden || $("table").hidden;
  $("rows").hidden = ranked;
  if (!ranked) {
    fill();
    shown = passing();
    for (const id of ["table", "legend"]) $(id).hidden = !shown.length;
    $("nothing").hidden = shown.length > 0;
    if (!shown.length && !restoring) $("nothing").scrollIntoView({block: "nearest"});
    drawing = true;
    if (columnsToo) table.setColumns(definitions());
    table.setSort(sortList());
    drawing = false;
    // A click on a header while the rows are being replaced counts: they keep the order that the table then has.
    await table.replaceData(shown);
    if (gone && shown.length) table.redraw(true);
  }
  drawSurroundings();
  drawRanks();
  save();
}

function drawSurroundings() {
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${ROWS.length.toLocaleString("en")}`;
  $("question").textContent = QUESTIONS[state.tab];
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.dataset.tab === state.tab;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `tab-${state.tab}`);
  const board = DATA.boards.find((one) => one.label === state.board);
  $("board").replaceChildren(...(board ? [board.description ? h("p", {}, board.description) : "",
    h("p", {class: "muted"}, board.conditions),
    ...board.notes.map((note) => h("p", {class: "notice"}, `${board.label}: ${note}`))]
    : [h("p", {class: "notice"}, "Several boards are shown together: their numbers are not comparable.")]));
  if (board && state.tab !== "ranks" && present().filter((column) => column.tabs.includes(state.tab)).length < 2) {
    const others = DATA.boards.filter((one) => one.columns.filter((key) => byKey.get(key).tabs.includes(state.tab)).length > 1);
    $("board").append(h("p", {class: "notice"}, present().length ? `${board.label} measures nothing of this kind. `
      : `No cell of ${board.label} was scored: each failed or was not applicable. `, others.length ? "These boards do: " : null,
      ...others.flatMap((one, place) => [place ? ", " : "", h("button", {type: "button", class: "inline", onclick: () => {
        state.board = one.label;
        fillFilters();
        refresh();
      }}, one.label)])));
  }
  if (state.attack) $("board").append(h("p", {class: "notice"}, `Attack columns show only ${JSON.parse(state.attack).join(" / ")}.`));
  drawChooser();
  drawLegend();
  drawBasket();
  drawScatter();
}

function drawChooser() {
  const visible = new Set(visibleColumns());
  const boxes = [...Object.entries(TEXTS), ...present().map((column) => [column.key, column.title])].map(([key, title]) => {
    const box = h("input", {type: "checkbox", value: key, onchange: () => {
      const chosen = [...$("chooser").querySelectorAll("input:checked")].map((one) => one.value);
      state.columns = chosen.join(",") || "-";
      refresh();
    }});
    box.checked = visible.has(key);
    return h("label", {class: "tick"}, box, ` ${title}`);
  });
  const focused = document.activeElement && document.activeElement.value;
  const inside = $("chooser").contains(document.activeElement);
  $("chooser").querySelector("fieldset").replaceChildren(h("legend", {}, "Shown columns"), ...boxes);
  if (inside) boxes.map((label) => label.firstChild).find((box) => box.value === focused)?.focus();
}

function drawLegend() {
  const list = [];
  for (const key of visibleColumns()) {
    const column = byKey.get(key);
    if (column) list.push([`${column.title} ${DATA.arrows[column.better]}`, column.note]);
  }
  const flags = new Map();
  if (visibleColumns().includes("state")) for (const row of shown) for (const one of flagsOf(row)) if (one.note) flags.set(one.text, one.note);
  $("legend").replaceChildren(...[...list, ...Object.entries(DATA.signs), ...flags].map(([term, text]) =>
    h("div", {}, h("dt", {}, term), h("dd", {}, text))));
}
