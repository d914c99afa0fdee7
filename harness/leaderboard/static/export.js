"use strict";
// The shown table as CSV and LaTeX.

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
  const special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}"};
  const symbols = {"−": "$-$", "ε": "$\\varepsilon$", "δ": "$\\delta$", "≥": "$\\geq$", "↑": "$\\uparrow$", "↓": "$\\downarrow$",
    "†": "\\dag{}", "‡": "\\ddag{}", "‖": "$\\|$", "§": "\\S{}", "¶": "\\P{}", "∞": "$\\infty$", "–": "--"};
  return String(text).replace(/[\\~^<>|{}$&#%_]/g, (sign) => special[sign] || `\\${sign}`).replace(/[−εδ≥↑↓†‡‖§¶∞–]/g, (sign) => symbols[sign])
    .replace(/\s+/g, " ").replace(/^ ?[[*]/, "{$&}");  // after the end of a line, [ and * are its options
}

function exportLatex() {
  const [columns, rows] = exported();
  const numbers = columns.map((key) => byKey.get(key)).filter((column) => column);
  const texts = columns.filter((key) => !byKey.has(key) && key !== "state");
  const head = ["Defence", "Aggregator", "Compressor", ...texts.map((key) => TEXTS[key]),
    ...numbers.map((column) => tex(`${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`))];
  const marks = new Set();
  let single = false;
  const value = (row, column) => {
    const found = row.values[column.place];
    if (!found) return "--";
    const main = tex(shownNumber(column, found));
    for (const sign of signs(found)) marks.add(sign);
    if (found.seeds === 1) single = true;
    const bold = found.bits & DATA.bits.best ? `\\textbf{${main}}` : main;
    if (column.key === "epsilon") return bold + (claimOf(row) ? ` {\\scriptsize ${tex(below(row, column, found))}}` : "");
    return found.low === null ? bold : `${bold} {\\scriptsize [${tex(show(column, found.low))}, ${tex(show(column, found.high))}]}`;
  };
  const lines = rows.map((row) => [...AXES.map((axis) => tex(row[axis])), ...texts.map((key) => tex(row[key])),
    ...numbers.map((column) => value(row, column))].join(" & ") + " \\\\");
  // Away from the page nobody else says what was left out, and what the marks mean.
  const note = [state.board ? `Board ${tex(state.board)}.` : "Numbers of different boards are not comparable.",
    state.attack ? `Attack columns show only ${tex(JSON.parse(state.attack).join(" / "))}.` : "",
    `Means over seeds and 95\\,\\% intervals${single ? "; a single seed has no interval" : ""}; bold is the best of the board.`,
    ...Object.entries(DATA.signs).filter(([sign]) => marks.has(sign)).map(([sign, text]) => `${tex(sign)} ${tex(text)}.`)].filter((part) => part).join(" ");
  download(fileName("tex"), "text/x-tex", ["% \\usepackage{booktabs}", "\\begin{table}", "\\centering",
    `\\begin{tabular}{${"l".repeat(3 + texts.length)}${"r".repeat(numbers.length)}}`, "\\toprule", `${head.join(" & ")} \\\\`, "\\midrule",
    ...lines, "\\bottomrule", "\\end{tabular}", `\\caption{${note}}`, "\\end{table}", ""].join("\n"));
}
