"use strict";
// What goes on paper: all rows and columns that are shown, in a plain table. The one on the screen holds only what is in sight.

const PAPER = 960;  // CSS pixels that fit across A4 and Letter laid on their side, within the style sheet's margins
let printing = false;

function printedTable() {
  const keys = visibleColumns();
  const heads = keys.map((key) => {
    const column = byKey.get(key);
    return column ? [column.title, h("small", {}, `${column.unit} ${DATA.arrows[column.better]}`)] : TEXTS[key];
  });
  const cell = (row, key) => {
    const column = byKey.get(key);
    return column ? valueNode(row, column) : key === "state" ? stateNode(row) : row[key];
  };
  const rows = table.getRows("active").map((one) => one.getData());
  const name = (row) => [...nameParts(row), ...nameMarks(row)];
  return grid(filtersInWords(), [["Configuration", h("small", {}, namedAxesInWords())], ...heads],
    rows.map((row) => [name(row), ...keys.map((key) => cell(row, key))]));
}

function filtersInWords() {
  const said = [...document.querySelectorAll("[data-filter]")].filter((input) => state[input.dataset.filter]).map((input) => {
    const label = input.closest("label").textContent.trim();
    if (input.type === "checkbox") return label;
    const name = input.closest("label").firstChild.textContent.trim();
    return `${name}: ${input.tagName === "SELECT" ? input.selectedOptions[0].textContent : input.value}`;
  });
  return said.join("; ") || "All rows";
}

function drawCharts(theme) {
  Plotly.purge($("plot"));  // else it keeps the width that it had
  paint(theme);
  if (state.card) drawCurves(byId.get(state.card));
}

function beforePrint() {
  if (printing) return;
  printing = true;
  drawCharts("light");
  if (state.tab === "ranks" || !shown.length) return;
  const printed = h("div", {id: "printed"}, printedTable());
  $("table").before(printed);
  if (printed.scrollWidth > PAPER) printed.style.zoom = PAPER / printed.scrollWidth;
}

function afterPrint() {
  printing = false;
  $("printed")?.remove();
  drawCharts(stored());
}
