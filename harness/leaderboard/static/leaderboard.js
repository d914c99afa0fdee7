"use strict";
(() => {
  // Everything in DATA comes from strangers: it is put into the page as text nodes and never as markup.
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const TEXT = DATA.tables.text;
  const COLUMNS = DATA.columns;
  const AXES = ["defence", "aggregator", "compressor"];
  const TABS = Object.keys(DATA.tabs);
  const MAX_POINTS = 3000;
  const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#8a8a8a"];
  const QUESTIONS = {
    overview: "What does protection cost? Pick two quantities; the front joins the rows that no other one beats in both.",
    robustness: "What is left under attack, at inference and in training?",
    privacy: "What is guaranteed, and what do attacks find out?",
    compression: "How small and fast does the model get, and what does that cost?",
    aggregation: "Which rule stands up to malicious clients, and at what price without them?",
  };
  const TEXTS = {
    defence: "Defence", aggregator: "Aggregator", compressor: "Compressor", board: "Board", dataset: "Data set",
    submission: "Submission", state: "State",
  };
  const byKey = new Map(COLUMNS.map((column, place) => [column.key, Object.assign(column, {place})]));
  const $ = (id) => document.getElementById(id);

  // DOM ------------------------------------------------------------------------------------------

  function h(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  function linkOrText(url, safe) {
    return safe.startsWith("https://") ? h("a", {href: safe, rel: "noopener nofollow", target: "_blank"}, url) : url;
  }

  function options(select, values, all, groups) {
    const old = select.value;
    select.replaceChildren(...(all ? [h("option", {value: ""}, all)] : []));
    for (const [value, label, group] of values) {
      const option = h("option", {value}, label);
      if (!groups) { select.append(option); continue; }
      let home = [...select.children].find((child) => child.label === group && child.tagName === "OPTGROUP");
      if (!home) select.append(home = h("optgroup", {label: group}));
      home.append(option);
    }
    select.value = old;
  }

  function download(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], {type}));
    const anchor = h("a", {href: url, download: name});
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // rows -----------------------------------------------------------------------------------------

  const list = (place) => DATA.tables.lists[place].map((part) => TEXT[part]);
  const number = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value === undefined ? null : value);

  for (const row of DATA.rows) {
    for (const cell of row.c) {
      const [threat, attack, family, norm, eps] = DATA.tables.attack[cell.h];
      Object.assign(cell, {threat, attack, y: family, norm, eps});
    }
  }

  const ROWS = DATA.rows.map((row, place) => {
    const one = DATA.submissions[row.s], board = DATA.boards[row.b];
    const labels = row.a.map((part) => TEXT[part]);
    const verdict = one.verification ? one.verification.verdict : "unverified";
    return {
      place, id: row.id, source: row, defence: labels[0], aggregator: labels[1], compressor: labels[2],
      board: board.label, dataset: one.dataset, submission: one.name, official: one.official,
      state: `${verdict}, ${one.official ? "official" : "unofficial"}`, values: [], name: labels.join(" / "),
      attacks: new Set(row.c.map((cell) => attackKey(cell))),
      words: [...labels, board.label, one.dataset, one.name, one.authors, ...row.c.map((c) => `${c.threat} ${c.attack}`),
        ...row.f.map((flag) => TEXT[flag])].join("\n").toLowerCase(),
    };
  });
  const byId = new Map(ROWS.map((row) => [row.id, row]));

  function attackKey(cell) { return JSON.stringify([cell.threat, cell.attack]); }

  // [mean or text, bits, seeds, low, high]; a number n is the clean cell's score with the bits n - 1.
  function unpack(row, column) {
    const parts = row.source.v[column.place];
    if (!parts) return null;
    if (typeof parts === "number") {
      const clean = cleanCell(row);
      return {...scoresOf(clean).get(column.score), seeds: seedsOf(row, clean), bits: parts - 1, text: ""};
    }
    const [mean, bits, seeds, low, high] = parts;
    const text = typeof mean === "string" ? mean : "";
    return {mean: text === "-inf" ? -Infinity : text ? Infinity : mean, bits, seeds, text, low: low === undefined ? null : low,
      high: high === undefined ? null : high};
  }

  const seedsOf = (row, cell) => (cell.n === undefined ? DATA.submissions[row.source.s].seeds.length : cell.n);

  // Kinds of numbers: 0 mean, low, high over seeds; 1 the same by bootstrap in the only seed; 2 a mean without an
  // interval; 3 the same at every seed; 4 a score that the clean cell has and this one lacks.
  function scoresOf(cell) {
    const found = new Map();
    const flat = cell.s || [];
    for (let i = 0; i < flat.length;) {
      const name = TEXT[flat[i]], kind = flat[i + 1];
      const mean = kind === 4 ? null : number(flat[i + 2]);
      const [low, high] = kind < 2 ? [number(flat[i + 3]), number(flat[i + 4])] : kind === 3 ? [mean, mean] : [null, null];
      found.set(name, {mean, low, high, bootstrap: kind === 1});
      i += kind < 2 ? 5 : kind === 4 ? 2 : 3;
    }
    return found;
  }

  const cleanCell = (row) => row.source.c.find((cell) => cell.y === "clean");

  // What a cell leaves out is as in the clean cell, unless it has no scores at all.
  function allScores(row, cell) {
    if (cell.x) return new Map();
    const clean = cleanCell(row);
    const found = clean && clean !== cell ? scoresOf(clean) : new Map();
    for (const [name, score] of scoresOf(cell)) found.set(name, score);
    for (const [name, score] of found) if (score.mean === null) found.delete(name);
    return found;
  }

  function valueUnder(row, column, attack) {
    const cell = row.source.c.find((one) => attackKey(one) === attack);
    if (!cell || cell.y !== column.family || column.pooling === "mean") return null;
    const score = allScores(row, cell).get(column.score);
    if (!score) return null;
    const flags = (cell.f || []).map((flag) => TEXT[flag]);
    const bits = (column.family === "evasion" && flags.includes("gradient-masking-suspected") ? DATA.bits.masked : 0)
      | (column.key === "audited" && flags.includes("audit-violation") ? DATA.bits.violated : 0);
    return {...score, seeds: seedsOf(row, cell), bits, text: Number.isFinite(score.mean) ? "" : "inf"};
  }

  const ofAttacks = (column) => !["clean", "any"].includes(column.family);

  function fill() {
    for (const row of ROWS) {
      for (const column of COLUMNS) {
        const value = state.attack && ofAttacks(column) ? valueUnder(row, column, state.attack)
          : unpack(row, column);
        row.values[column.place] = value;
        row[column.key] = value ? value.mean : null;
      }
    }
    if (state.attack) markBest();
  }

  // Under one attack the best are those under that attack: same rules as for the whole board.
  function markBest() {
    for (const column of COLUMNS.filter((one) => ofAttacks(one) && !one.measured)) {
      for (let board = 0; board < DATA.boards.length; board++) {
        const competing = ROWS.filter((row) => row.source.b === board && competes(row));
        const shown = competing.map((row) => row.values[column.place]).filter((value) => value);
        const fair = shown.filter((value) => !(value.bits & ~DATA.bits.best) && Number.isFinite(value.mean));
        if (shown.length < 2 || !fair.length) continue;
        const written = (value) => Number(show(column, value.mean).replace("−", "-"));
        const top = fair.map(written).reduce((a, b) => (column.better === "higher" ? Math.max(a, b) : Math.min(a, b)));
        const winners = fair.filter((value) => written(value) === top);
        if (winners.length < shown.length) for (const value of winners) value.bits |= DATA.bits.best;
      }
    }
  }

  const officialBoards = new Set(DATA.rows.filter((row) => sound(row) && DATA.submissions[row.s].official).map((row) => row.b));

  function sound(row) {
    const check = DATA.submissions[row.s].verification;
    return !(check && check.verdict === "diverged");
  }

  function competes(row) { return sound(row.source) && (row.official || !officialBoards.has(row.source.b)); }

  // numbers --------------------------------------------------------------------------------------

  function show(column, value) {
    const scaled = value * column.scale;
    return (Math.abs(scaled) < 1000 ? scaled.toFixed(column.digits) : scaled.toFixed(0)).replace(/^-/, "−");
  }

  function general(value) {
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    return value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e7) ? value.toExponential(2)
      : String(Number(value.toPrecision(5)));
  }

  function signs(value) {
    const names = {incomplete: "†", masked: "‡", clients: "§", violated: "!"};
    return Object.entries(names).map(([name, sign]) => (value.bits & DATA.bits[name] ? sign : "")).join("");
  }

  const shownNumber = (column, value) => (value.text === "inf" ? "∞" : value.text || show(column, value.mean)) + signs(value);

  function below(row, column, value) {
    if (column.key === "epsilon") {
      const claim = claimOf(row);
      return claim ? `δ ${general(claim.delta)}` : "";
    }
    if (value.low !== null) return span(column, value);
    return value.seeds === 1 ? "1 seed" : "";
  }

  function span(column, value) {
    const [low, high] = [show(column, value.low), show(column, value.high)];
    return low === high ? "± 0" : `${low} – ${high}`;
  }

  function claimOf(row) {
    const weakness = (claim) => (claim.holds ? (claim.epsilon === null ? Infinity : claim.epsilon) : Infinity);
    const claims = row.source.c.filter((cell) => !cell.x && cell.g !== undefined).map((cell) => DATA.tables.guarantee[cell.g]);
    return claims.length ? claims.reduce((a, b) => (weakness(b) > weakness(a) || (a.holds && !b.holds) ? b : a)) : null;
  }

  function meaning(value) {
    const said = [...signs(value)].map((sign) => DATA.signs[sign]);
    if (value.bits & DATA.bits.best) said.push("best of its board");
    if (DATA.few[value.seeds]) said.push(DATA.few[value.seeds]);
    return said.join("; ");
  }

  function valueNode(row, column) {
    const value = row.values[column.place];
    if (!value) return h("span", {class: "none"}, "–");
    const classes = ["value"];
    if (value.bits & DATA.bits.best) classes.push("best");
    if (value.bits & DATA.bits.violated) classes.push("violated");
    const small = below(row, column, value);
    return h("span", {class: classes.join(" "), title: meaning(value)}, h("b", {}, shownNumber(column, value)),
      value.bits & DATA.bits.best ? h("span", {class: "unseen"}, " best") : null, small ? h("small", {}, small) : null);
  }

  // state ----------------------------------------------------------------------------------------

  const firstBoard = (DATA.boards.find((board) => !board.superseded) || DATA.boards[0]).label;
  const DEFAULTS = {tab: "overview", board: firstBoard, dataset: "", defence: "", aggregator: "", compressor: "", attack: "",
    q: "", official: "", sort: "", columns: "", card: "", compare: "", side: "", x: "", y: ""};
  const FILTERS = ["board", "dataset", ...AXES, "attack", "q", "official"];
  const state = {...DEFAULTS};
  let table = null, shown = [], restoring = false, hash = null;

  function save() {
    if (restoring) return;
    const query = new URLSearchParams();
    for (const [name, usual] of Object.entries(DEFAULTS)) if (state[name] !== usual) query.set(name, state[name]);
    hash = query.toString() ? `#${query}` : "#";
    history.replaceState(null, "", hash);
  }

  function load() {
    const query = new URLSearchParams(location.hash.slice(1));
    for (const [name, usual] of Object.entries(DEFAULTS)) state[name] = query.has(name) ? query.get(name) : usual;
    if (!TABS.includes(state.tab)) state.tab = DEFAULTS.tab;
    if (state.board && !DATA.boards.some((board) => board.label === state.board)) state.board = DEFAULTS.board;
    if (state.attack && !ROWS.some((row) => row.attacks.has(state.attack))) state.attack = "";
    for (const name of ["x", "y"]) if (!byKey.has(state[name])) state[name] = "";
    state.compare = compared().map((row) => row.id).join(",");
    if (!byId.has(state.card)) state.card = "";
  }

  const compared = () => [...new Set(state.compare.split(","))].map((id) => byId.get(id)).filter((row) => row);

  // filters --------------------------------------------------------------------------------------

  function fillFilters() {
    const inBoard = ROWS.filter((row) => !state.board || row.board === state.board);
    const unique = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b)).map((value) => [value, value]);
    const field = (name) => document.querySelector(`[data-filter=${name}]`);
    options(field("board"), DATA.boards.map((b) => [b.label, b.label + (b.superseded ? " (superseded)" : "")]), "all boards");
    options(field("dataset"), unique(ROWS.map((row) => row.dataset)), "all");
    for (const axis of AXES) options(field(axis), unique(inBoard.map((row) => row[axis])), "all");
    const attacks = [...new Set(inBoard.flatMap((row) => [...row.attacks]))].map((key) => [key, ...JSON.parse(key)])
      .filter(([, threat, attack]) => threat !== "none" || attack !== "none");
    options(field("attack"), attacks.map(([key, threat, attack]) => [key, attack, threat]), "worst of all", true);
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

  // table ----------------------------------------------------------------------------------------

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

  function nameNode(cell) {
    const row = cell.getData();
    const marks = [];
    if (DATA.boards[row.source.b].superseded) marks.push(h("span", {class: "badge"}, "superseded"));
    if (!row.official) marks.push(h("span", {class: "badge"}, "unofficial"));
    const button = h("button", {type: "button", class: "open", title: row.name, "data-row": row.id,
      onclick: (event) => { event.stopPropagation(); openCard(row.id); }}, h("b", {}, row.defence),
      h("small", {}, `${row.aggregator} / ${row.compressor}`));
    return h("span", {class: "name"}, button, ...marks);
  }

  function stateNode(cell) {
    const row = cell.getData(), one = DATA.submissions[row.source.s];
    const verdict = one.verification ? one.verification.verdict : "unverified";
    const flags = row.source.f.map((flag) => TEXT[flag]);
    const failed = row.source.c.filter((one) => one.x === "failed").length;
    return h("span", {class: "badges"}, h("span", {class: `badge ${verdict}`}, verdict),
      ...flags.map((flag) => h("span", {class: flag === "audit-violation" ? "badge bad" : "badge warn"}, flag)),
      failed ? h("span", {class: "badge warn"}, `${failed} failed`) : null);
  }

  function textNode(cell) { return document.createTextNode(String(cell.getValue())); }

  function definitions() {
    const wide = window.innerWidth > 720;
    const fixed = {headerSort: false, frozen: wide, resizable: false};
    const found = [
      {title: "Compare", field: "id", width: 44, formatter: pickNode, hozAlign: "center", ...fixed,
        titleFormatter: () => h("span", {class: "unseen"}, "Compare")},
      {title: "Configuration", field: "name", width: wide ? 290 : 172, formatter: nameNode, sorter, frozen: wide,
        headerSortTristate: true, titleFormatter: header("Configuration", "defence, aggregator / compressor", "", "")},
    ];
    for (const key of visibleColumns()) {
      const column = byKey.get(key);
      if (column) {
        found.push({title: column.title, field: key, sorter, hozAlign: "right", headerHozAlign: "right", minWidth: 112,
          widthGrow: 1, headerSortStartingDir: column.better === "higher" ? "desc" : "asc",
          formatter: (cell) => valueNode(cell.getData(), column),
          titleFormatter: header(column.title, column.unit, DATA.arrows[column.better], `${column.note}; ${column.better} is better`)});
      } else {
        found.push({title: TEXTS[key], field: key, sorter, minWidth: 130, formatter: key === "state" ? stateNode : textNode,
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
      initialSort: sortList(), columnDefaults: {headerWordWrap: true}, placeholder: "No row fits these filters",
      columnHeaderSortMulti: true, resizableColumnFit: false, headerSortElement: "<span aria-hidden='true'></span>",
    });
    table.on("rowClick", (event, row) => {
      if (!event.target.closest("input,button,a") && !String(getSelection())) openCard(row.getData().id);
    });
    table.on("dataSorted", (sorters) => {
      if (restoring || !sorters.length) return;
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

  async function refresh(columnsToo = true) {
    const before = restoring;
    restoring = true;
    const order = sortList();
    fill();
    shown = passing();
    if (columnsToo) table.setColumns(definitions());
    await table.replaceData(shown);
    table.setSort(order);
    restoring = before;
    drawSurroundings();
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
      ...board.notes.map((note) => h("p", {class: "notice"}, `${board.label}: ${note}`))]
      : [h("p", {class: "notice"}, "Several boards are shown together: their numbers are not comparable.")]));
    if (state.attack) {
      const [threat, attack] = JSON.parse(state.attack);
      $("board").append(h("p", {class: "notice"}, `Columns of attacks show ${threat} / ${attack} alone.`));
    }
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
    $("legend").replaceChildren(...[...list, ...Object.entries(DATA.signs)].map(([term, text]) =>
      h("div", {}, h("dt", {}, term), h("dd", {}, text))));
  }

  // scatter --------------------------------------------------------------------------------------

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const method = (label) => label.replace(/\([^()]*(\([^()]*(\([^()]*\)[^()]*)*\)[^()]*)*\)/g, "");

  function axisColumns() {
    const columns = present();
    const keys = columns.map((column) => column.key);
    const first = (...wanted) => wanted.find((key) => keys.includes(key)) || keys[0];
    const x = keys.includes(state.x) ? state.x : first("accuracy");
    const y = keys.includes(state.y) ? state.y : first("robust", "byzantine", "epsilon", "mia", "size");
    return [columns, byKey.get(x), byKey.get(y)];
  }

  // Positions that no other one beats in both: sorted by x, best first, each must improve on y.
  function front(rows, x, y) {
    const cost = (row, column) => (column.better === "higher" ? -row[column.key] : row[column.key]);
    const order = [...rows].sort((a, b) => cost(a, x) - cost(b, x) || cost(a, y) - cost(b, y));
    const found = [];
    for (const row of order) {
      const last = found[found.length - 1];
      if (!last || cost(row, y) < cost(last, y) || (cost(row, y) === cost(last, y) && cost(row, x) === cost(last, x))) found.push(row);
    }
    return found;
  }

  function layout(extra) {
    const axis = {gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true};
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: css("--text"), size: 12, family: css("--font")},
      margin: {l: 56, r: 12, t: 12, b: 48}, hoverlabel: {bgcolor: css("--surface"), bordercolor: css("--line"), font: {color: css("--text")}},
      ...extra, xaxis: {...axis, ...extra.xaxis}, yaxis: {...axis, ...extra.yaxis},
    };
  }

  const CONFIG = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

  function drawScatter() {
    $("scatter").hidden = state.tab !== "overview";
    if (state.tab !== "overview") return;
    const [columns, x, y] = axisColumns();
    if (!x || !y) { $("scatter").hidden = true; return; }
    for (const [name, column] of [["x", x], ["y", y]]) {
      options($(name), columns.map((one) => [one.key, one.title]));
      $(name).value = column.key;
    }
    const usable = shown.filter((row) => Number.isFinite(row[x.key]) && Number.isFinite(row[y.key]));
    const fronts = DATA.boards.map((board, place) => front(usable.filter((row) => row.source.b === place && competes(row)
      && ![x, y].some((column) => row.values[column.place].bits & ~(DATA.bits.best | DATA.bits.clients))), x, y));
    const best = new Set(fronts.flat());
    const others = usable.filter((row) => !best.has(row));
    const step = Math.ceil(others.length / MAX_POINTS) || 1;
    const points = [...others.filter((_, place) => place % step === 0), ...best];
    const groups = new Map();
    for (const row of points) {
      const name = method(row.defence);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(row);
    }
    const names = [...groups.keys()].sort();
    const told = (row) => plain(`${row.name} (${row.submission})`).replace(/ \/ /g, "<br>");
    const traces = fronts.filter((rows) => rows.length).map((rows) => ({
      x: rows.map((row) => row[x.key] * x.scale), y: rows.map((row) => row[y.key] * y.scale), mode: "lines",
      line: {color: css("--muted"), width: 1.5, dash: "dot", shape: "linear"}, hoverinfo: "skip", name: "front",
      showlegend: false,
    }));
    names.forEach((name, place) => {
      const rows = groups.get(name);
      const colour = PALETTE[Math.min(place, PALETTE.length - 1)];
      traces.push({
        x: rows.map((row) => row[x.key] * x.scale), y: rows.map((row) => row[y.key] * y.scale), mode: "markers",
        type: "scatter", name: plain(name.length > 34 ? `${name.slice(0, 33)}…` : name), customdata: rows.map((row) => row.id), text: rows.map(told),
        hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
        marker: {color: colour, size: rows.map((row) => (best.has(row) ? 12 : 8)), opacity: rows.map((row) => (best.has(row) ? 1 : 0.65)),
          symbol: rows.map((row) => (best.has(row) ? "diamond" : "circle")),
          line: {width: rows.map((row) => (best.has(row) ? 1.5 : 0)), color: css("--text")}},
      });
    });
    const axisTitle = (column) => `${column.title}${column.unit ? ` [${column.unit}]` : ""}, ${column.better} is better`;
    const narrow = window.innerWidth < 720;
    Plotly.react($("plot"), traces, layout({
      height: narrow ? 380 : 430, xaxis: {title: {text: axisTitle(x)}}, yaxis: {title: {text: axisTitle(y)}}, hovermode: "closest",
      legend: narrow ? {orientation: "h", y: -0.25, yref: "paper", font: {size: 11}} : {x: 1.01, y: 1}, showlegend: names.length <= 24,
    }), CONFIG).then((plot) => {
      plot.removeAllListeners("plotly_click");
      plot.on("plotly_click", (event) => event.points[0].customdata && openCard(event.points[0].customdata));
    });
    const list = fronts.flat();
    const skipped = shown.length - usable.length, thinned = usable.length - points.length;
    $("plot").setAttribute("aria-label", `${y.title} against ${x.title} of ${points.length} rows; ${list.length} are on the front, listed below`);
    $("front").replaceChildren(list.length ? "◆ On the front: " : "No row can be compared in both.",
      ...list.slice(0, 12).flatMap((row, place) => [place ? "; " : "", h("button", {type: "button", class: "inline", "data-row": row.id,
        onclick: () => openCard(row.id)}, `${row.name}${state.board ? "" : ` (${row.board})`}`)]),
      list.length > 12 ? `; and ${list.length - 12} more.` : list.length ? "." : "",
      skipped ? ` ${skipped} rows lack a finite value.` : "", thinned ? ` ${thinned} points off the front are not drawn.` : "");
  }

  // card -----------------------------------------------------------------------------------------

  let opener = null;

  function openDialog(dialog, children) {
    if (!dialog.open) opener = document.activeElement;
    dialog.replaceChildren(h("button", {type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close()}, "×"), ...children);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dialog.querySelector("h2").focus();
  }

  function closed(name) {
    state[name] = "";
    save();
    const row = opener && opener.dataset ? opener.dataset.row : null;
    // Rows are drawn as they come into sight: the button may have been made anew.
    const target = opener && opener.isConnected ? opener : row && document.querySelector(`#table [data-row="${row}"]`);
    if (target) target.focus();
  }

  function facts(pairs) {
    return h("dl", {class: "facts"}, pairs.filter(([, value]) => value !== "" && value !== null).map(([term, value]) =>
      h("div", {}, h("dt", {}, term), h("dd", {}, value))));
  }

  function grid(caption, heads, rows) {
    return h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption}, h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", {scope: "col"}, head)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, place) => (place ? h("td", {}, cell) : h("th", {scope: "row"}, cell))))))));
  }

  function scoreText(score, seeds) {
    if (score.low === null) return general(score.mean) + (seeds === 1 ? " (1 seed)" : "");
    return `${general(score.mean)} [${general(score.low)}, ${general(score.high)}]${score.bootstrap ? " (bootstrap, 1 seed)" : ""}`;
  }

  function unitOf(name) {
    const unit = DATA.units[name] || ["", "none", ""];
    return [DATA.arrows[unit[1]] || "", unit[0], unit[2]];
  }

  function openCard(id) {
    const row = byId.get(id);
    if (!row) return;
    state.card = id;
    const one = DATA.submissions[row.source.s], board = DATA.boards[row.source.b], claim = claimOf(row);
    const clean = cleanCell(row);
    const flags = row.source.f.map((flag) => TEXT[flag]);
    const children = [
      h("h2", {id: "card-title", tabindex: -1}, row.defence, h("small", {}, ` / ${row.aggregator} / ${row.compressor}`)),
      h("p", {class: "badges"}, h("span", {class: "badge"}, board.label), board.superseded ? h("span", {class: "badge warn"}, "superseded") : null,
        h("span", {class: `badge ${one.verification ? one.verification.verdict : ""}`}, one.verification ? one.verification.verdict : "unverified"),
        h("span", {class: "badge"}, one.official ? "official" : "unofficial"),
        ...flags.map((flag) => h("span", {class: flag === "audit-violation" ? "badge bad" : "badge warn"}, flag))),
      ...one.because.map((reason) => h("p", {class: "notice"}, `Unofficial: ${reason}`)),
      flags.includes("audit-violation") ? h("p", {class: "notice bad"}, "An audit refutes the guarantee: suspect a bug in the defence.") : null,
      flags.includes("gradient-masking-suspected") ? h("p", {class: "notice"}, "Gradient masking is suspected: robust accuracy is probably too high.") : null,
      DATA.few[one.seeds.length] ? h("p", {class: "notice"}, DATA.few[one.seeds.length]) : null,
      h("div", {class: "charts"}, h("figure", {id: "by-round"}), h("figure", {id: "by-eps"})),
      h("h3", {}, "Pooled over attacks"),
      grid("Means over seeds and 95 % intervals, as in the table", ["quantity", "value", "95 % interval", "seeds"],
        COLUMNS.map((column) => [column, unpack(row, column)]).filter(([, value]) => value).map(([column, value]) => [
          `${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`, shownNumber(column, value),
          value.low === null ? "" : span(column, value), String(value.seeds)])),
    ];
    const attacks = row.source.c.filter((cell) => cell !== clean);
    if (attacks.length) {
      children.push(h("h3", {}, "Attack by attack"), grid("What each attack changes; everything else is as without an attack",
        ["attack", "radius", "scores", "notes"], attacks.map((cell) => [
          `${cell.threat} / ${cell.attack}`, cell.eps === null ? "" : `${cell.norm === null ? "" : `${cell.norm} `}${greyLevels(cell.eps) === null ? general(cell.eps) : `${greyLevels(cell.eps)}/255`}`,
          h("ul", {}, cell.x ? h("li", {}, cell.x) : [...scoresOf(cell)].map(([name, score]) => h("li", {title: unitOf(name)[2]},
            `${name} ${unitOf(name)[0]} `, h("b", {}, score.mean === null ? "none" : scoreText(score, seedsOf(row, cell))))),),
          [...(cell.f || []).map((flag) => TEXT[flag]), ...(cell.r === undefined ? [] : [TEXT[cell.r]])].join("; ")])));
    }
    if (clean && !clean.x) {
      children.push(h("h3", {}, "Without an attack"), grid("Every score without an attack", ["score", "value", "unit", "meaning"],
        [...scoresOf(clean)].map(([name, score]) => [`${name} ${unitOf(name)[0]}`, scoreText(score, seedsOf(row, clean)), unitOf(name)[1], unitOf(name)[2]])));
    } else if (clean && clean.r !== undefined) children.push(h("p", {class: "notice"}, `Without an attack: ${clean.x}: ${TEXT[clean.r]}`));
    children.push(h("h3", {}, "Guarantee"), claim ? facts([
      ["epsilon", claim.epsilon === null ? "∞" : general(claim.epsilon)], ["delta", general(claim.delta)], ["holds", claim.holds ? "yes" : "no"],
      ["for", `one ${claim.unit}, ${claim.neighbours}`], ["against", claim.against], ["by", claim.by], ["accountant", claim.accountant],
      ["group", claim.group_epsilon === null ? "" : `${general(claim.group_epsilon)} for ${claim.largest_group} records`],
      ["noise", claim.simulated ? "from seeds: the method is measured, no release is protected" : "not from seeds"],
      ["broken by", claim.broken_by.join("; ")]]) : h("p", {}, "None: the updates carry no accounted noise."));
    const chain = row.source.c.find((cell) => cell.l !== undefined && (!claim || DATA.tables.guarantee[cell.g] === claim));
    if (chain) children.push(grid("From the data to the release", ["stage", "part", "reads", "effect", "why"],
      DATA.tables.lineage[chain.l].map((step) => list(step).map((text, place) => (place === 3 ? h("span", {class: `effect ${text === "breaks" ? "bad" : ""}`}, text) : text)))));
    children.push(
      h("h3", {}, "Repeat it"), h("p", {}, `Save the scenario below as ${one.file}, then:`),
      snippet("Command", `harness run ${one.file} ${
        row.source.r.map((part, place) => (part ? TEXT[part] : `--select '${AXES[place]}=${TEXT[row.source.a[place]]}'`)).join(" ")}`),
      h("details", {}, h("summary", {}, `Scenario ${one.file}`), snippet("Scenario", one.text, one.file)),
      h("details", {}, h("summary", {}, "All parameters"), h("pre", {tabindex: 0}, list(row.source.k).join("\n") || "not given")),
      h("h3", {}, "Where it comes from"), facts([
        ["submission", one.name], ["authors", one.authors], ["address", one.url ? linkOrText(one.url, one.link) : ""], ["created", one.created],
        ["note", one.note], ["data", `${one.dataset}, contents ${one.fingerprint.slice(0, 12)}`], ["model", one.model],
        ["seeds", one.seeds.join(", ")], ["scenario", one.hash.slice(0, 12)], ...one.environment]),
      one.verification ? facts([["re-run", `${one.verification.verdict}: ${one.verification.cells} cells, ${one.verification.when}`],
        ...one.verification.differences.slice(0, 50).map((text) => ["differs", text]),
        ...one.verification.environment.map(([name, value]) => [`re-run, ${name}`, value])]) : h("p", {}, "Nobody has re-run it yet."),
      h("details", {}, h("summary", {}, "Methods and their code"), h("ul", {}, list(row.source.m).map((part) => h("li", {}, part)))),
      h("h3", {}, "Cite"), list(row.source.t).length ? snippet("BibTeX", list(row.source.t).join("\n\n"), "methods.bib")
        : h("p", {}, "No method of this row names a publication."));
    openDialog($("card"), children.filter((child) => child));
    drawCurves(row);
    save();
  }

  function snippet(label, text, file) {
    const copy = h("button", {type: "button", class: "quiet", onclick: () => copyText(text, copy)}, "Copy");
    const keep = file ? h("button", {type: "button", class: "quiet", onclick: () => download(file, "text/plain", text)}, "Save") : null;
    return h("div", {class: "snippet"}, h("pre", {tabindex: 0, "aria-label": label}, text), h("div", {class: "buttons"}, copy, keep));
  }

  function copyText(text, button) {
    const old = button.textContent;
    const said = (word) => { button.textContent = word; setTimeout(() => { button.textContent = old; }, 1500); };
    const fallback = () => {
      const area = h("textarea", {"aria-label": "Text to copy"});
      area.value = text;
      (button.closest("dialog") || document.body).append(area);
      area.select();
      said(document.execCommand("copy") ? "Copied" : "Not copied");
      area.remove();
      button.focus();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said("Copied"), fallback);
    else fallback();
  }

  // The radius in steps of 1/255 where it is a whole number of them; null elsewhere. Five digits were kept of it.
  function greyLevels(radius) {
    const steps = Math.round(radius * 255);
    return Math.abs(radius * 255 - steps) < 2e-3 * Math.max(steps, 0.01) ? steps : null;
  }

  function drawCurves(row) {
    const clean = cleanCell(row);
    const trace = (name, x, y, colour, mode = "lines+markers") => ({name: plain(name), x, y, mode, type: "scatter",
      line: {color: PALETTE[colour % PALETTE.length]}, marker: {size: 5}});
    const rounds = row.source.c.filter((cell) => cell.u).slice(0, 8).map((cell, place) => trace(cell === clean ? "no attack" : `${cell.threat} / ${cell.attack}`,
      DATA.tables.rounds[cell.u[0]], cell.u[1].map((value) => value / 10), place));
    const radii = new Map();
    const grey = row.source.c.every((cell) => cell.eps === null || greyLevels(cell.eps) !== null);
    for (const cell of row.source.c) {
      if (cell.y !== "evasion" || cell.x || cell.eps === null) continue;
      const score = scoresOf(cell).get("robust_accuracy");
      if (!score || score.mean === null) continue;
      const name = cell.attack + (cell.norm === null ? "" : `, ${cell.norm}`);
      if (!radii.has(name)) radii.set(name, []);
      radii.get(name).push([cell.eps, score.mean * 100]);
    }
    const curves = [...radii].map(([name, points], place) => {
      points.sort((a, b) => a[0] - b[0]);
      return trace(name, points.map((point) => point[0] * (grey ? 255 : 1)), points.map((point) => point[1]), place, points.length > 1 ? "lines+markers" : "markers");
    });
    const draw = (id, traces, title, x, y) => {
      if (!traces.length) { $(id).remove(); return; }
      const plot = h("div", {role: "img", "aria-label": `${title}: ${traces.length} curves`});
      $(id).replaceChildren(h("figcaption", {}, title), plot);
      Plotly.newPlot(plot, traces, layout({height: 290, xaxis: {title: {text: x}}, yaxis: {title: {text: y}}, showlegend: true,
        legend: {orientation: "h", y: -0.3, font: {size: 11}}}), {...CONFIG, displayModeBar: false});
    };
    draw("by-round", rounds, "Validation accuracy by round", "round", "accuracy [%]");
    draw("by-eps", curves, "Robust accuracy by radius of the attack", grey ? "radius [1/255]" : "radius, pixels in [0, 1]", "accuracy [%]");
  }

  // comparison -----------------------------------------------------------------------------------

  function choose(id, on) {
    const ids = compared().map((row) => row.id).filter((one) => one !== id);
    state.compare = [...ids, ...(on ? [id] : [])].join(",");
    drawBasket();
    save();
  }

  function drawBasket() {
    const rows = compared();
    $("basket").hidden = !rows.length;
    $("basket").firstElementChild.textContent = rows.length === 1 ? "1 row ticked; tick another to compare" : `${rows.length} rows ticked`;
    $("compare").disabled = rows.length < 2;
  }

  function openComparison() {
    const rows = compared();
    if (rows.length < 2) return;
    state.side = "1";
    save();
    const mixed = new Set(rows.map((row) => row.board)).size > 1;
    const lines = [["defence", ...rows.map((row) => row.defence)], ["aggregator", ...rows.map((row) => row.aggregator)],
      ["compressor", ...rows.map((row) => row.compressor)], ["board", ...rows.map((row) => row.board)],
      ["submission", ...rows.map((row) => `${row.submission}, ${row.state}`)]];
    for (const column of COLUMNS) {
      const values = rows.map((row) => unpack(row, column));
      if (!values.some((value) => value)) continue;
      const marked = DATA.bits.incomplete | DATA.bits.masked | DATA.bits.violated;
      const fair = values.filter((value) => value && Number.isFinite(value.mean) && !(value.bits & marked));
      const sameUnit = new Set(fair.map((value) => value.bits & DATA.bits.clients)).size === 1;
      const written = (value) => Number(show(column, value.mean).replace("−", "-"));
      const means = fair.map(written);
      const top = column.better === "higher" ? Math.max(...means) : Math.min(...means);
      const winners = mixed || column.measured || !sameUnit ? [] : fair.filter((value) => written(value) === top);
      lines.push([h("span", {title: column.note}, `${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`),
        ...values.map((value, place) => (value ? h("span", {class: winners.includes(value) && winners.length < values.length ? "value best" : "value"},
          h("b", {}, shownNumber(column, value)), h("small", {}, below(rows[place], column, value))) : "–"))]);
    }
    openDialog($("comparison"), [h("h2", {id: "comparison-title", tabindex: -1}, "Side by side"),
      mixed ? h("p", {class: "notice"}, "These rows are of different boards: their numbers are not comparable.") : "",
      grid("Means over seeds, 95 % intervals below; shaded is the best of these rows, where they can be compared", ["", ...rows.map((row) => h("button", {type: "button", class: "inline",
        onclick: () => { $("comparison").close(); openCard(row.id); }}, [row.defence, row.aggregator, row.compressor].map(method).join(" / ")))], lines),
      h("p", {class: "muted"}, "Intervals are of each row alone. Rows share seeds, so intervals that overlap do not show that rows are equal.")]);
  }

  // export ---------------------------------------------------------------------------------------

  function exported() {
    const columns = visibleColumns().filter((key) => !AXES.includes(key));
    return [columns, table.getRows("active").map((row) => row.getData())];
  }

  const fileName = (ending) => `leaderboard-${state.tab}.${ending}`;

  function exportCsv() {
    const [columns, rows] = exported();
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      if (typeof value === "string" && /^ *[=+\-@\t\r\n＝＋－＠]/.test(text)) text = `'${text}`;
      return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    const head = [...AXES], parts = [];
    for (const key of columns) {
      head.push(key);
      if (byKey.has(key)) head.push(`${key}_low`, `${key}_high`, `${key}_seeds`, `${key}_signs`);
    }
    for (const row of rows) {
      const line = AXES.map((axis) => row[axis]);
      for (const key of columns) {
        const column = byKey.get(key);
        if (!column) { line.push(row[key]); continue; }
        const value = row.values[column.place];
        line.push(value ? (value.text ? value.text : value.mean) : null, value ? value.low : null, value ? value.high : null,
          value ? value.seeds : 0, value ? signs(value) : "");
      }
      parts.push(line.map(cell).join(","));
    }
    download(fileName("csv"), "text/csv", `${head.join(",")}\n${parts.join("\n")}\n`);
  }

  function tex(text) {
    const special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"};
    const symbols = {"−": "$-$", "ε": "$\\varepsilon$", "δ": "$\\delta$", "≥": "$\\geq$", "↑": "$\\uparrow$", "↓": "$\\downarrow$",
      "†": "\\dag{}", "‡": "\\ddag{}", "§": "\\S{}", "∞": "$\\infty$", "–": "--"};
    return String(text).replace(/[\\~^{}$&#%_]/g, (sign) => special[sign] || `\\${sign}`).replace(/[−εδ≥↑↓†‡§∞–]/g, (sign) => symbols[sign]).replace(/\s+/g, " ");
  }

  function exportLatex() {
    const [columns, rows] = exported();
    const numbers = columns.map((key) => byKey.get(key)).filter((column) => column);
    const texts = columns.filter((key) => !byKey.has(key) && key !== "state");
    const head = ["Defence", "Aggregator", "Compressor", ...texts.map((key) => TEXTS[key]),
      ...numbers.map((column) => tex(`${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`))];
    const value = (row, column) => {
      const found = row.values[column.place];
      if (!found) return "--";
      const main = tex(shownNumber(column, found));
      const bold = found.bits & DATA.bits.best ? `\\textbf{${main}}` : main;
      return found.low === null ? bold : `${bold} {\\scriptsize [${tex(show(column, found.low))}, ${tex(show(column, found.high))}]}`;
    };
    const lines = rows.map((row) => [...AXES.map((axis) => tex(row[axis])), ...texts.map((key) => tex(row[key])),
      ...numbers.map((column) => value(row, column))].join(" & ") + " \\\\");
    const note = `${state.board ? `Board ${tex(state.board)}. ` : ""}Means over seeds and 95\\,\\% intervals; bold is the best of the board.`;
    download(fileName("tex"), "text/x-tex", ["% \\usepackage{booktabs}", "\\begin{table}", "\\centering",
      `\\begin{tabular}{${"l".repeat(3 + texts.length)}${"r".repeat(numbers.length)}}`, "\\toprule", `${head.join(" & ")} \\\\`, "\\midrule",
      ...lines, "\\bottomrule", "\\end{tabular}", `\\caption{${note}}`, "\\end{table}", ""].join("\n"));
  }

  // theme ----------------------------------------------------------------------------------------

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("psr-theme"); } catch { return null; } };

  function paint(choice) {
    const on = choice === "dark" || (choice !== "light" && dark.matches);
    document.documentElement.dataset.theme = on ? "dark" : "light";
    $("theme").textContent = on ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Use the ${on ? "light" : "dark"} theme`);
    if (table) drawScatter();
  }

  // start ----------------------------------------------------------------------------------------

  async function show_(tab) {
    state.tab = tab;
    state.columns = "";
    state.sort = "";
    await refresh();
  }

  async function restore() {
    // Closing a dialog is told later, and would then clear what was just read.
    for (const dialog of [$("card"), $("comparison")]) {
      if (dialog.open) await new Promise((done) => { dialog.addEventListener("close", done, {once: true}); dialog.close(); });
    }
    restoring = true;
    load();
    fillFilters();
    await refresh();
    restoring = false;
    if (state.card) openCard(state.card);
    else if (state.side) openComparison();
  }

  function listen() {
    $("tabs").addEventListener("click", (event) => event.target.dataset.tab && show_(event.target.dataset.tab));
    $("tabs").addEventListener("keydown", (event) => {
      const move = {ArrowRight: 1, ArrowLeft: -1, Home: -TABS.length, End: TABS.length}[event.key];
      if (!move) return;
      event.preventDefault();
      const here = TABS.indexOf(state.tab);
      const next = Math.abs(move) === 1 ? (here + move + TABS.length) % TABS.length : move < 0 ? 0 : TABS.length - 1;
      show_(TABS[next]);
      $(`tab-${TABS[next]}`).focus();
    });
    let wait = 0;
    const changed = (event) => {
      const input = event.target, name = input.dataset.filter;
      if (!name) return;
      state[name] = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
      if (name === "board") fillFilters();
      clearTimeout(wait);
      wait = setTimeout(() => refresh(name === "board"), name === "q" ? 120 : 0);
    };
    $("filters").addEventListener("input", changed);
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      for (const name of FILTERS) state[name] = DEFAULTS[name];
      fillFilters();
      refresh();
    });
    for (const name of ["x", "y"]) $(name).addEventListener("change", () => { state[name] = $(name).value; drawScatter(); save(); });
    for (const [name, dialog] of [["card", $("card")], ["side", $("comparison")]]) {
      dialog.addEventListener("close", () => closed(name));
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
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
    window.addEventListener("hashchange", () => { if (location.hash !== hash) restore(); });
    document.addEventListener("click", (event) => { if (!event.target.closest("#chooser")) $("chooser").open = false; });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && $("chooser").open) { $("chooser").open = false; $("chooser").firstElementChild.focus(); }
    });
  }

  async function start() {
    paint(stored());
    load();
    fillFilters();
    restoring = true;
    await makeTable();
    listen();
    await restore();
    // What is drawn may bring a scroll bar, which makes the table draw itself again: ready is after that.
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    for (let i = 0; i < 4; i++) await frame();
    document.body.dataset.ready = "true";
  }

  start();
})();
