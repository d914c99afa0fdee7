"use strict";
// The trade-off of two quantities, and the rows that no other one dominates.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

function axisColumns() {
  const columns = present();
  const keys = columns.map((column) => column.key);
  const rows = ROWS.filter((row) => !state.board || row.board === state.board);
  const varies = (key) => keys.includes(key) && new Set(rows.map((row) => row[key]).filter(Number.isFinite)).size > 1;
  const first = (...wanted) => wanted.find(varies) || wanted.find((key) => keys.includes(key)) || keys[0];
  const x = keys.includes(state.x) ? state.x : first("accuracy");
  const y = keys.includes(state.y) ? state.y : first("robust", "byzantine", "mia", "inversion", "epsilon", "size");
  return [columns, byKey.get(x), byKey.get(y)];
}

// Rows that no other one dominates: sorted by x, best first, each must improve on y.
function front(rows, x, y) {
  const cost = (row, column) => (column.better === "higher" ? -1 : 1) * counted(column, row[column.key]);
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
    modebar: {bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--text")},
    hoverlabel: {bgcolor: css("--surface"), bordercolor: css("--line"), font: {color: css("--text")}},
    ...extra, margin: {l: 56, r: 12, t: 12, b: 48, ...extra.margin}, xaxis: {...axis, ...extra.xaxis}, yaxis: {...axis, ...extra.yaxis},
  };
}

// The buttons are named one by one: those that plotly.js adds of its own include one that sends the chart to its makers.
const CONFIG = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]]};

function drawScatter() {
  $("scatter").hidden = state.tab !== "overview" || !shown.length;
  if ($("scatter").hidden) return;
  const [columns, x, y] = axisColumns();
  if (!x || !y) { $("scatter").hidden = true; return; }
  for (const [name, column] of [["x", x], ["y", y]]) {
    options($(name), columns.map((one) => [one.key, one.title]));
    $(name).value = column.key;
  }
  const usable = shown.filter((row) => Number.isFinite(row[x.key]) && Number.isFinite(row[y.key]));
  const marks = (row) => row.values[x.place].bits | row.values[y.place].bits;
  const comparable = usable.filter((row) => competes(row) && !(marks(row) & ~(DATA.bits.best | DATA.bits.clients | DATA.bits.subset)));
  // An epsilon for records is not compared with one for clients: a front for each.
  const fronts = DATA.boards.flatMap((board, place) => [0, DATA.bits.clients].map((unit) => front(
    comparable.filter((row) => row.source.b === place && (marks(row) & DATA.bits.clients) === unit), x, y)));
  const best = new Set(fronts.flat());
  const others = usable.filter((row) => !best.has(row));
  const step = Math.ceil(others.length / MAX_POINTS) || 1;
  const points = [...others.filter((_, place) => place % step === 0), ...best];
  const groups = new Map();
  for (const row of points) {
    const name = method(row[namedAxes()[0]]);
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
    const colour = PALETTE[place % PALETTE.length], symbol = SYMBOLS[place % SYMBOLS.length];
    traces.push({
      x: rows.map((row) => row[x.key] * x.scale), y: rows.map((row) => row[y.key] * y.scale), mode: "markers",
      type: "scatter", name: plain(cut(name, 34)), customdata: rows.map((row) => row.id), text: rows.map(told),
      hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
      marker: {color: colour, size: rows.map((row) => (best.has(row) ? 12 : 8)), opacity: rows.map((row) => (best.has(row) ? 1 : 0.65)),
        symbol, line: {width: rows.map((row) => (best.has(row) ? 1.5 : 0)), color: css("--text")}},
    });
  });
  const narrow = window.innerWidth < 720 && !printing;
  const axisTitle = (column) => `${plain(column.title)}${column.unit ? ` [${plain(column.unit)}]` : ""},${narrow ? "<br>" : " "}${column.better} is better`
    + (column.chance === null ? "" : `<br>${show(column, column.chance)} is chance,${narrow ? "<br>" : " and "}less counts as chance`);
  const lines = axisTitle(x).split("<br>").length;  // the legend comes below them where the page is narrow
  $("plot").hidden = !usable.length;
  if (usable.length) Plotly.react($("plot"), traces, layout({
    width: printing ? PAPER - 40 : undefined, height: printing ? 320 : narrow ? 360 + 20 * lines : 430, margin: {t: 34},
    xaxis: {title: {text: axisTitle(x)}}, yaxis: {title: {text: axisTitle(y)}}, hovermode: "closest",
    legend: narrow ? {orientation: "h", y: -0.15 - 0.1 * lines, yref: "paper", font: {size: 11}} : {x: 1.01, y: 1}, showlegend: names.length <= 24,
  }), CONFIG).then((plot) => {
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => event.points[0].customdata && openCard(event.points[0].customdata));
  });
  const list = fronts.flat();
  const skipped = shown.length - usable.length, thinned = usable.length - points.length;
  $("plot").setAttribute("aria-label", `${y.title} against ${x.title} of ${points.length} rows; ${list.length} are on the front, listed below`);
  $("front").replaceChildren(list.length ? "On the front, outlined:" : "No row can be compared in both.",
    h("ul", {}, list.slice(0, 12).map((row) => h("li", {}, h("button", {type: "button", class: "inline", "data-row": row.id,
      onclick: () => openCard(row.id)}, `${row.name}${state.board ? "" : ` (${row.board})`}`)))),
    list.length > 12 ? `and ${list.length - 12} more.` : "",
    skipped ? ` ${skipped} rows lack a finite value.` : "", thinned ? ` ${thinned} points off the front are not drawn.` : "");
}
