"use strict";
// One row's card.

function scoreText(score, seeds) {
  if (score.low === null || score.low === score.high) return general(score.mean) + (seeds === 1 ? " (1 seed)" : "");
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
  const flags = new Map(flagsOf(row).map((one) => [one.flag, one]));
  const children = [
    h("h2", {id: "card-title", tabindex: -1}, row.defence, h("small", {}, ` / ${row.aggregator} / ${row.compressor}`)),
    h("p", {class: "badges"}, h("span", {class: "badge"}, board.label), board.superseded ? h("span", {class: "badge warn"}, "superseded") : null,
      h("span", {class: `badge ${one.verification ? one.verification.verdict : ""}`}, one.verification ? one.verification.verdict : "unverified"),
      h("span", {class: "badge"}, one.official ? "official" : "unofficial"),
      ...[...flags.values()].map(flagNode)),
    ...one.because.map((reason) => h("p", {class: "notice"}, `Unofficial: ${reason}`)),
    flags.has("audit-violation") ? h("p", {class: "notice bad"}, "An audit refutes the guarantee: suspect a bug in the defence.") : null,
    flags.has("gradient-masking-suspected") ? h("p", {class: "notice"}, "Gradient masking is suspected: robust accuracy is probably too high.") : null,
    flags.has("constant-predictions") ? h("p", {class: "notice"}, flags.get("constant-predictions").released
      ? "A model of this row predicts one class for every test image, in some seed or under some attack. Scores of attacks on it mean nothing."
      : "After an attack on training, in at least one seed, the model of this row predicts one class for every test image; the notes below say which attack. Without an attack it does not.") : null,
    DATA.few[one.seeds.length] ? h("p", {class: "notice"}, DATA.few[one.seeds.length]) : null,
    h("div", {class: "charts"}, h("figure", {id: "by-round"}), h("figure", {id: "by-eps"})),
    h("h3", {}, "Pooled over attacks"),
    row.source.c.every((cell) => cell.x) ? h("p", {class: "notice"}, "No cell of this row was scored: each failed or was not applicable.") : grid("Means over seeds and 95 % intervals, as in the table", ["quantity", "value", "95 % interval", "seeds"],
      COLUMNS.map((column) => [column, pooled(row, column)]).filter(([, value]) => value).map(([column, value]) => [
        `${column.title}${column.unit ? ` [${column.unit}]` : ""} ${DATA.arrows[column.better]}`, shownNumber(column, value),
        value.low === null ? "" : span(column, value), String(value.seeds)])),
  ];
  const attacks = row.source.c.filter((cell) => cell !== clean);
  if (attacks.length) {
    children.push(h("h3", {}, "Attack by attack"), grid("Scores that each attack changes; all others are the same as without an attack",
      ["attack", "radius", "scores", "notes"], attacks.map((cell) => [
        `${cell.threat} / ${cell.attack}`, cell.eps === null ? "" : `${cell.norm === null ? "" : `${cell.norm} `}${radiusText(cell)}`,
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
    ["largest group", claim.largest_group === null ? "" : `${claim.group_epsilon === null ? "no finite epsilon" : `epsilon ${general(claim.group_epsilon)}`} for all ${claim.largest_group} records of one group together, such as the patient with most images`],
    ["noise", claim.simulated ? "drawn from seeds: it measures the method and protects no release" : "not from seeds"],
    ["broken by", claim.broken_by.join("; ")]]) : h("p", {}, row.source.c.every((cell) => cell.x) ? "Not known, as no cell was scored."
    : row.source.c.some((cell) => !cell.x && cell.g !== undefined) ? "None: not all cells have one." : "None: no accounted noise is added to the updates."));
  const chain = row.source.c.find((cell) => cell.l !== undefined && (!claim || DATA.tables.guarantee[cell.g] === claim));
  if (chain) children.push(grid("From the data to the release", ["stage", "part", "reads", "effect", "why"],
    DATA.tables.lineage[chain.l].map((step) => list(step).map((text, place) => (place === 3 ? h("span", {class: `effect ${text === "breaks" ? "bad" : ""}`}, text) : text)))));
  children.push(
    h("h3", {}, "Repeat it"), h("p", {},
      `Save the scenario below as ${one.file}${one.packages.length ? `, which needs ${one.packages.join(", ")}` : ""}, then:`),
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

// The radius in steps of 1/255 where it is a whole number of them, or of half ones that no short decimal says as well;
// null elsewhere. Five digits were kept of it.
function greyLevels(radius) {
  const halves = Math.round(radius * 510);
  const same = Number((halves / 510).toPrecision(5)) === radius && (halves % 2 === 0 || Number(radius.toPrecision(3)) !== radius);
  return same ? halves / 2 : null;
}

// Pixels lie in [0, 1]: only the largest change of one of them is counted in grey levels.
const inGrey = (cell) => cell.norm === "linf" && greyLevels(cell.eps) !== null;

const radiusText = (cell) => (inGrey(cell) ? `${greyLevels(cell.eps)}/255` : general(cell.eps) + (cell.norm === "l0" ? " pixels" : ""));

// Norm -> curves, each with its name and its points by radius: for norms of which some attack was run at two radii.
function sweeps(row) {
  const found = new Map();
  for (const cell of row.source.c) {
    if (cell.y !== "evasion" || cell.x || cell.eps === null) continue;
    const score = scoresOf(cell).get("robust_accuracy");
    if (!score || score.mean === null) continue;
    if (!found.has(cell.norm)) found.set(cell.norm, new Map());
    const own = found.get(cell.norm);
    own.set(cell.attack, [...(own.get(cell.attack) || []), {cell, radius: cell.eps, mean: score.mean}]);
  }
  const radii = (points) => new Set(points.map((point) => point.radius)).size;
  const threat = (point) => point.cell.threat.replace(/-eps[\d.e+-]+$/, "");  // as a sweep of radii names its threats
  return [...found].map(([norm, attacks]) => [norm, [...attacks].flatMap(([attack, points]) => {
    const name = attack + (norm === null ? "" : `, ${norm}`);
    points.sort((a, b) => a.radius - b.radius);
    if (radii(points) === points.length) return [{name, points}];
    return [...new Set(points.map(threat))].map((one) => ({name: `${name} (${one})`, points: points.filter((point) => threat(point) === one)}));
  })]).filter(([, curves]) => curves.some(({points}) => radii(points) > 1));
}

function drawCurves(row) {
  const clean = cleanCell(row);
  const trace = (name, x, y, place, mode = "lines+markers") => ({name, x, y, mode, type: "scatter",
    line: {color: PALETTE[place % PALETTE.length], dash: DASHES[place % DASHES.length]},
    marker: {size: 6, symbol: SYMBOLS[place % SYMBOLS.length]}});
  const rounds = row.source.c.filter((cell) => cell.u).slice(0, 8).map((cell, place) => trace(cell === clean ? "no attack" : `${cell.threat} / ${cell.attack}`,
    DATA.tables.rounds[cell.u[0]], cell.u[1].map((value) => value / 10), place));
  const charts = sweeps(row).map(([norm, curves]) => {
    const grey = curves.every(({points}) => points.every(({cell}) => inGrey(cell)));
    const unit = grey ? "radius [1/255]" : {linf: "radius, pixels in [0, 1]", l2: "L2 radius, pixels in [0, 1]", l0: "changed pixels"}[norm] || "radius";
    return [curves.map(({name, points}, place) => trace(name, points.map(({radius}) => radius * (grey ? 255 : 1)),
      points.map(({mean}) => mean * 100), place, points.length > 1 ? "lines+markers" : "markers")), unit];
  });
  const draw = (id, title, several, y) => {
    if (!several.length) { $(id)?.remove(); return; }
    $(id).replaceChildren(h("figcaption", {}, title));
    for (const [traces, x] of several) {
      const plot = h("div", {role: "img", "aria-label": `${title}: ${traces.length} curve${traces.length === 1 ? "" : "s"}`});
      $(id).append(plot);
      const width = printing ? PAPER / 2 - 20 : plot.clientWidth || 440;
      // Letters are six pixels wide, and what stands before each name 46; a legend's columns are equally wide.
      const named = traces.map((one) => ({...one, name: cut(one.name, Math.floor((width - 100) / 6))}));
      const across = Math.max(1, Math.floor((width - 60) / (46 + 6 * Math.max(...named.map((one) => one.name.length)))));
      const lines = Math.ceil(named.length / across);
      Plotly.newPlot(plot, named.map((one) => ({...one, name: plain(one.name)})), layout({
        width: printing ? width : undefined, height: 270 + 19 * lines, xaxis: {title: {text: x, standoff: 8}}, yaxis: {title: {text: y}}, showlegend: true,
        legend: {orientation: "h", x: 0, y: -0.3, font: {size: 11}}}), {...CONFIG, displayModeBar: false});
    }
  };
  draw("by-round", "Validation accuracy by round", rounds.length ? [[rounds, "round"]] : [], "accuracy [%]");
  draw("by-eps", "Robust accuracy by radius of the attack", charts, "accuracy [%]");
}
