"use strict";
// The page's data, its rows, and how their numbers are written.

// Everything in DATA comes from strangers: it is put into the page as text nodes and never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const TEXT = DATA.tables.text;
const COLUMNS = DATA.columns;
const AXES = ["defence", "aggregator", "compressor"];
const TABS = Object.keys(DATA.tabs);
const MAX_POINTS = 3000;
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#8a8a8a"];
// Series differ in these too, for readers who see no colours and for grey paper; as many as go on with other colours.
const SYMBOLS = ["circle", "square", "triangle-up", "x", "diamond", "triangle-down", "star"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const QUESTIONS = {
  overview: "What does protection cost? Pick two quantities; the front joins the rows that no other row beats in one of them without losing in the other.",
  robustness: "How much accuracy is left under attack, at inference and in training?",
  privacy: "What is guaranteed, and what do attacks find out?",
  compression: "How small and fast does the model get, and what does that cost?",
  aggregation: "Which rule withstands malicious clients, and what does it cost without them?",
  ranks: "Which methods rank better across many problems, and could that be chance?",
};
const TEXTS = {
  defence: "Defence", aggregator: "Aggregator", compressor: "Compressor", board: "Board", dataset: "Data set",
  submission: "Submission", state: "State",
};
// What a row's flags mean, and what they are called where only models that an attack on training left have them.
const FLAGS = new Map([
  ["constant-predictions", ["predicts one class for every test image in at least one seed", "constant if attacked"]],
  ["updates-dropped", ["non-finite updates were dropped: at least a tenth of a training's, or all of a round", "dropped if attacked"]],
  ["nan-predictions", ["answers NaN to some test image in at least one seed: it has diverged", "NaN if attacked"]],
  ["attack-unscored", ["an attack has no score: no metric covers what it found, or the score is NaN", ""]],
  ["gradient-masking-suspected", ["a weaker attack does better than one with gradients: robust accuracy is probably too high", "", "masking suspected"]],
  ["audit-violation", ["an audit refutes the guarantee: suspect a bug in the defence", ""]],
]);
const byKey = new Map(COLUMNS.map((column, place) => [column.key, Object.assign(column, {place})]));

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
    attacks: new Set(row.c.flatMap((cell) => [JSON.stringify([cell.threat]), JSON.stringify([cell.threat, cell.attack])])),
    words: [...labels, board.label, one.dataset, one.name, one.authors, ...one.packages, ...row.c.map((c) => `${c.threat} ${c.attack}`),
      ...row.f.map((flag) => TEXT[flag])].join("\n").toLowerCase(),
  };
});
// What a row is called where there is little room: a label that is too long goes without its parameters, which are cut
// off otherwise, and with them what follows, such as `+ dp-sgd`. Not where another label of its board is then the same.
const method = (label) => label.replace(/\([^()]*(\([^()]*(\([^()]*\)[^()]*)*\)[^()]*)*\)/g, "");
const room = {defence: 24, aggregator: 16, compressor: 16};
for (const board of DATA.boards) {
  const own = ROWS.filter((row) => row.board === board.label);
  const differing = AXES.find((axis) => new Set(own.map((row) => row[axis])).size > 1) || AXES[0];
  board.named = [differing, ...AXES.filter((axis) => axis !== differing)];  // the order of the axes in a row's name
  for (const axis of AXES) {
    const labels = new Map();
    for (const label of new Set(own.map((row) => row[axis]))) labels.set(method(label), [...(labels.get(method(label)) || []), label]);
    for (const row of own) {
      const short = method(row[axis]);
      (row.short ||= {})[axis] = row[axis].length > room[axis] && labels.get(short).length === 1 ? short : row[axis];
    }
  }
}
const byId = new Map(ROWS.map((row) => [row.id, row]));

// null: none. A number n: the clean cell's score, with the bits n - 1. Else [mean or text, bits, seeds, low, high].
function unpack(row, column, parts) {
  if (!parts) return null;
  if (typeof parts === "number") {
    const clean = cleanCell(row);
    return {...scoresOf(clean).get(column.score), seeds: seedsOf(row, clean), bits: parts - 1, text: ""};
  }
  const [mean, bits, seeds, low = null, high = null] = parts;
  const text = typeof mean === "string" ? mean : "";
  return {mean: text === "-inf" ? -Infinity : text ? Infinity : mean, bits, seeds, text, low, high};
}

const pooled = (row, column) => unpack(row, column, row.source.v[column.place]);

// A row's number at each seed, by seed; empty where there are not several, and for a guarantee, which is the worst seed's.
function bySeed(row, column) {
  if (column.pooling === "claim") return new Map();
  const seeds = DATA.submissions[row.source.s].seeds, numbers = row.source.p[column.place], value = pooled(row, column);
  if (!numbers && (!value || value.seeds < 2 || value.text)) return new Map();
  return new Map(seeds.map((seed, place) => [seed, numbers ? numbers[place] : value.mean]).filter(([, mean]) => mean !== null));
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

const ofAttacks = (column) => !["clean", "any"].includes(column.family);

// Over all attacks, or in the columns of attacks under the chosen threat or attack alone.
function fill() {
  const view = DATA.tables.view.findIndex((parts) => JSON.stringify(parts) === state.attack);
  for (const row of ROWS) {
    const under = new Map();
    for (let i = 0; i < row.source.w.length; i += 3) if (row.source.w[i] === view) under.set(row.source.w[i + 1], row.source.w[i + 2]);
    for (const column of COLUMNS) {
      const value = state.attack && ofAttacks(column) ? unpack(row, column, under.get(column.place)) : pooled(row, column);
      row.values[column.place] = value;
      row[column.key] = value ? value.mean : null;
    }
  }
}

// What a number counts as where rows are compared: an attack that does worse than guessing found out no less.
const counted = (column, value) => (column.chance === null ? value : Math.max(value, column.chance));

const competes = (row) => DATA.submissions[row.source.s].competes;

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
  const names = {incomplete: "†", masked: "‡", constant: "‖", clients: "§", subset: "¶", violated: "!"};
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
  return value.low === value.high ? "± 0" : `${low} – ${high}`;
}

const claimOf = (row) => (row.source.g === null ? null : DATA.tables.guarantee[row.source.g]);

// A row's flags, those of its released model first: what each is called, what it means, and whether it is of that model.
function flagsOf(row) {
  const released = new Set(row.source.c.filter((cell) => ["clean", "evasion", "privacy"].includes(cell.y)).flatMap((cell) => cell.f || []));
  return row.source.f.map((place) => {
    const flag = TEXT[place], [note, other, short] = FLAGS.get(flag) || ["", ""];
    return released.has(place) || !other ? {flag, text: short || flag, note, released: true}
      : {flag, text: other, note: `only after an attack on training: ${note}`, released: false};
  }).sort((a, b) => b.released - a.released);
}

const flagNode = ({flag, text, note, released}) =>
  h("span", {class: `badge${flag === "audit-violation" ? " bad" : released ? " warn" : ""}`, title: note || null}, text);

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
