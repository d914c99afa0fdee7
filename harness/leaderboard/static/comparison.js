"use strict";
// Rows side by side.

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

// a - b over the seeds that both have, of what scores count as: mean and 95 % interval of Student's t; null with fewer
// than two.
function paired(a, b, column) {
  const differences = [...a.keys()].filter((seed) => b.has(seed))
    .map((seed) => counted(column, a.get(seed)) - counted(column, b.get(seed)));
  const n = differences.length;
  if (n < 2) return null;
  const mean = differences.reduce((sum, one) => sum + one, 0) / n;
  const variance = differences.reduce((sum, one) => sum + (one - mean) ** 2, 0) / (n - 1);
  const half = DATA.quantiles[n - 2] * Math.sqrt(variance / n);
  return {mean, low: mean - half, high: mean + half};
}

function pairedNode(first, row, column) {
  const found = paired(bySeed(row, column), bySeed(first, column), column);
  if (!found) return null;
  const sign = found.mean > 0 ? "+" : "";
  return h("small", {}, `Δ ${sign}${show(column, found.mean)} [${show(column, found.low)}, ${show(column, found.high)}]`);
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
    const values = rows.map((row) => pooled(row, column));
    if (!values.some((value) => value)) continue;
    const marked = DATA.bits.incomplete | DATA.bits.masked | DATA.bits.constant | DATA.bits.violated;
    const fair = values.filter((value) => value && Number.isFinite(value.mean) && !(value.bits & marked));
    const sameUnit = new Set(fair.map((value) => value.bits & DATA.bits.clients)).size === 1;
    const written = (value) => Number(show(column, counted(column, value.mean)).replace("−", "-"));
    const means = fair.map(written);
    const top = column.better === "higher" ? Math.max(...means) : Math.min(...means);
    const winners = mixed || column.measured || !sameUnit ? [] : fair.filter((value) => written(value) === top);
    lines.push([h("span", {title: column.note}, `${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`),
      ...values.map((value, place) => (value ? h("span", {class: winners.includes(value) && winners.length < values.length ? "value best" : "value"},
        h("b", {}, shownNumber(column, value)), h("small", {}, below(rows[place], column, value)),
        place && !mixed ? pairedNode(rows[0], rows[place], column) : null) : "–"))]);
  }
  openDialog($("comparison"), [h("h2", {id: "comparison-title", tabindex: -1}, "Side by side"),
    mixed ? h("p", {class: "notice"}, "These rows are from different boards: their numbers are not comparable.") : "",
    grid("Means over seeds, with 95 % intervals below; the best of the comparable rows is shaded", ["quantity", ...rows.map((row) => h("button", {type: "button", class: "inline",
      onclick: () => { $("comparison").close(); openCard(row.id); }}, [row.defence, row.aggregator, row.compressor].map(method).join(" / ")))], lines),
    h("p", {class: "muted"}, "The interval below a number is for that row alone. Δ is the difference from the first row over the seeds that both "
      + "have, with its 95 % interval. Rows of one seed share partition, weights and batches, so Δ is the comparison to read.")]);
}
